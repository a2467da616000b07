#pragma once
#include <cstdint>

#include "../data_type.h"
#include "row_index.h"

namespace vleff::cuda {

// sums[row] = sum over i with index[i] = row of rows[i], in the order of i, in float32. Row numbers outside
// of [0, stored) are left out. Pointers are on the device, all else on the host.
struct SumRowsProblem {
  DataType rows_type, sums_type;  // the first is float32, or as the second
  int64_t count, stored, width;   // each at most 2^31 - 1
  const void* rows;               // [count, width]
  RowIndex index;                 // [count]
  void* sums;                     // [stored, width]
};

}  // namespace vleff::cuda

// Starts the kernel on a CUDA stream and returns at once: 0, or a CUDA error number.
extern "C" int vleff_sum_rows_cuda(const vleff::cuda::SumRowsProblem* problem, void* stream);

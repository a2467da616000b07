#pragma once
#include <vector>

#include "../kernels/cuda/sum_rows_problem.h"
#include "cuda_arguments.h"

namespace vleff {

// As `sum_rows` of the CPU, but row numbers outside of [0, stored) are left out. rows: [count, ...],
// contiguous.
inline Tensor sum_rows_on_cuda(const char* op, const Tensor& rows, const Tensor& index, int64_t stored,
                               ScalarType type) {
  int64_t width = 1;
  std::vector<int64_t> sizes{stored};
  for (int64_t d = 1; d < rows.dim(); ++d) {
    sizes.push_back(rows.size(d));
    width *= rows.size(d);
  }
  Tensor sums = torch::stable::new_empty(rows, sizes, type);
  const cuda::SumRowsProblem problem{
      data_type(rows), data_type(sums),       rows.size(0),     stored,
      width,           rows.const_data_ptr(), row_index(index), sums.mutable_data_ptr()};
  check_started(op, vleff_sum_rows_cuda(&problem, current_stream(rows)));
  return sums;
}

}  // namespace vleff

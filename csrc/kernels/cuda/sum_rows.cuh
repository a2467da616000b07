#pragma once
#include "device.cuh"
#include "sum_rows_problem.h"

namespace vleff::cuda {

constexpr int sum_rows_columns = 8 * warp_size;  // of one warp
constexpr int sum_rows_warps = 4;                // of a block; they know nothing of each other

// A warp takes some columns of one row of the sums. It looks through all row numbers, 32 at a time, so that
// it finds its rows in their order: no atomic addition, the same bits at every run.
template <class Rows, class Sums>
__global__ void __launch_bounds__(sum_rows_warps* warp_size)
    sum_rows(const __grid_constant__ SumRowsProblem problem) {
  const int lane = threadIdx.x % warp_size, count = static_cast<int>(problem.count);
  const int64_t groups = (problem.width + sum_rows_columns - 1) / sum_rows_columns;
  const int64_t warp = int64_t{blockIdx.x} * sum_rows_warps + threadIdx.x / warp_size;
  const int64_t row = warp / groups, first_column = warp % groups * sum_rows_columns + lane;
  if (row >= problem.stored) return;
  const Rows* const rows = static_cast<const Rows*>(problem.rows);
  float sums[sum_rows_columns / warp_size] = {};
  for (int first = 0; first < count; first += warp_size) {
    int64_t number = -1;
    if (first + lane < count) {
      number = problem.index.is_int64 ? static_cast<const int64_t*>(problem.index.numbers)[first + lane]
                                      : static_cast<const int32_t*>(problem.index.numbers)[first + lane];
    }
    for (uint32_t found = __ballot_sync(whole_warp, number == row); found; found &= found - 1) {
      const int64_t from = first + __clz(__brev(found));  // the lowest bit's number
#pragma unroll
      for (int i = 0; i < sum_rows_columns / warp_size; ++i) {
        const int64_t column = first_column + i * warp_size;
        if (column < problem.width) sums[i] += static_cast<float>(rows[from * problem.width + column]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < sum_rows_columns / warp_size; ++i) {
    const int64_t column = first_column + i * warp_size;
    if (column < problem.width) {
      static_cast<Sums*>(problem.sums)[row * problem.width + column] = static_cast<Sums>(sums[i]);
    }
  }
}

}  // namespace vleff::cuda

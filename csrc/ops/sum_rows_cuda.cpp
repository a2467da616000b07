#include "sum_rows_cuda.h"

#include <torch/csrc/stable/library.h>

namespace vleff {
namespace {

Tensor sum_rows_op(Tensor rows, Tensor index, int64_t stored) {
  constexpr const char* op = "sum_rows";
  const Device device = cuda_device_of(rows);
  check_tensor(op, "rows", rows, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
               {any_size, any_size}, "[count, width]", device);
  check_tensor(op, "index", index, {ScalarType::Int, ScalarType::Long}, {rows.size(0)}, "[count]", device);
  if (stored < 0) reject(op, "stored", "a number of at least 0", text(stored));
  if (rows.size(0) > INT32_MAX) reject(op, "rows", "at most 2^31 - 1 rows", describe(rows));
  const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  return sum_rows_on_cuda(op, as_contiguous(rows), as_contiguous(index), stored, rows.scalar_type());
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("sum_rows", TORCH_BOX(&vleff::sum_rows_op));
}

#include "sum_rows.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "checked_index.h"

namespace vleff {
namespace {

Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

}  // namespace

Tensor sum_rows(const Tensor& rows, const int32_t* index, int64_t stored, ScalarType type) {
  const Tensor summed = as_contiguous(as_type(rows, ScalarType::Float));
  std::vector<int64_t> sizes{stored};
  for (int64_t d = 1; d < rows.dim(); ++d) sizes.push_back(rows.size(d));
  Tensor sums = torch::stable::new_zeros(summed, sizes);
  const int64_t count = rows.size(0), width = stored == 0 ? 0 : sums.numel() / stored;
  const float* source = summed.const_data_ptr<float>();
  float* target = sums.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, width, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < count; ++row) {
      const float* from = source + row * width;
      float* to = target + index[row] * width;
      for (int64_t column = begin; column < end; ++column) to[column] += from[column];
    }
  });
  return as_type(sums, type);
}

namespace {

Tensor sum_rows_op(Tensor rows, Tensor index, int64_t stored) {
  constexpr const char* op = "sum_rows";
  check_tensor(op, "rows", rows, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
               {any_size, any_size}, "[count, width]");
  check_tensor(op, "index", index, {ScalarType::Int, ScalarType::Long}, {rows.size(0)}, "[count]");
  if (stored < 0) reject(op, "stored", "a number of at least 0", text(stored));
  const OptionalTensor numbers = checked_index(op, "index", index, stored);
  return sum_rows(rows, numbers->const_data_ptr<int32_t>(), stored, rows.scalar_type());
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("sum_rows", TORCH_BOX(&vleff::sum_rows_op));
}

#include "../kernels/cpu/masked_linear.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "checks.h"
#include "parallel.h"

VLEFF_DISPATCH(MaskedLinearKernels, masked_linear_kernels)

namespace vleff {
namespace {

using OptionalTensor = std::optional<Tensor>;

Activation parse_activation(const char* op, const std::string& name) {
  const char* names[] = {"none", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu"};
  for (int i = 0; i < 6; ++i)
    if (name == names[i]) return static_cast<Activation>(i);
  reject(op, "activation", "none, relu, gelu, gelu_tanh, silu or quick_gelu", "'" + name + "'");
}

void check_dtype_of_input(const char* op, const Tensor& input) {
  const ScalarType type = input.scalar_type();
  if (!input.is_cpu() || input.dim() < 1 ||
      (type != ScalarType::Float && type != ScalarType::BFloat16 && type != ScalarType::Half)) {
    reject(op, "input", "float32, bfloat16 or float16 [..., columns] on the CPU", describe(input));
  }
}

// The structure of a weight with `columns` columns. The kernels stay within their memory whatever `order` and
// `block_columns` hold; what they read depends on `starts`, which are checked.
MaskedStructure checked_structure(const char* op, int64_t rows, int64_t columns, const Tensor& starts,
                                  const Tensor& order, const Tensor& block_columns, int64_t row_chunk,
                                  int64_t column_block) {
  const auto check_size = [&](const char* argument, int64_t value, int64_t largest) {
    if (value < 1 || value > largest) reject(op, argument, text("1 to ", largest), text(value));
  };
  check_size("row_chunk", row_chunk, largest_row_chunk);
  check_size("column_block", column_block, largest_column_block);
  if (rows < 1) reject(op, "rows", "at least 1", text(rows));
  if (columns < 1) reject(op, "input", "at least one column", text(columns));
  const int64_t blocks = (columns + column_block - 1) / column_block, elements = block_columns.numel();
  check_tensor(op, "starts", starts, {ScalarType::Int}, {rows * blocks + 1}, "[rows * blocks + 1]");
  check_tensor(op, "order", order, {ScalarType::Byte}, {rows * blocks}, "[rows * blocks]");
  check_tensor(op, "block_columns", block_columns, {ScalarType::Byte}, {any_size}, "[elements]");
  check_contiguous(op, "starts", starts);
  check_contiguous(op, "order", order);
  check_contiguous(op, "block_columns", block_columns);
  const int32_t* start = static_cast<const int32_t*>(starts.const_data_ptr());
  bool ascend = start[0] == 0 && start[rows * blocks] == elements;
  for (int64_t place = 0; place < rows * blocks; ++place) ascend &= start[place] <= start[place + 1];
  if (!ascend) {
    reject(op, "starts", text("numbers that never descend from 0 to ", elements, ", the elements"), "others");
  }
  return {rows,
          columns,
          row_chunk,
          column_block,
          start,
          static_cast<const uint8_t*>(order.const_data_ptr()),
          static_cast<const uint8_t*>(block_columns.const_data_ptr())};
}

// The first size(s) of `like` with `width` as the last one
std::vector<int64_t> shape_like(const Tensor& like, int64_t width) {
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end());
  shape.back() = width;
  return shape;
}

void check_like(const char* op, const char* argument, const Tensor& tensor, const std::vector<int64_t>& shape,
                const Tensor& input) {
  bool fits = tensor.scalar_type() == input.scalar_type() && tensor.is_cpu() &&
              tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t d = 0; fits && d < shape.size(); ++d) fits = tensor.size(d) == shape[d];
  if (fits) return;
  std::string sizes;
  for (size_t d = 0; d < shape.size(); ++d) sizes += text(d ? ", " : "", shape[d]);
  reject(op, argument, name_of(input.scalar_type()) + " [" + sizes + "] on the CPU", describe(tensor));
}

int64_t rows_of(const Tensor& tensor) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) rows *= tensor.size(d);
  return rows;
}

Tensor masked_linear(Tensor input, Tensor values, Tensor starts, Tensor order, Tensor block_columns,
                     int64_t rows, int64_t row_chunk, int64_t column_block, OptionalTensor bias,
                     OptionalTensor residual, std::string activation, OptionalTensor, OptionalTensor,
                     OptionalTensor, OptionalTensor) {
  constexpr const char* op = "masked_linear";
  check_dtype_of_input(op, input);
  const int64_t columns = input.size(input.dim() - 1), tokens = rows_of(input);
  const MaskedStructure structure =
      checked_structure(op, rows, columns, starts, order, block_columns, row_chunk, column_block);
  const std::vector<int64_t> shape = shape_like(input, rows);
  check_like(op, "values", values, {block_columns.numel()}, input);
  if (bias) check_like(op, "bias", *bias, {rows}, input);
  if (residual) check_like(op, "residual", *residual, shape, input);
  const Activation function = parse_activation(op, activation);
  input = as_contiguous(input);
  values = as_contiguous(values);
  if (bias) bias = as_contiguous(*bias);
  if (residual) residual = as_contiguous(*residual);
  Tensor out = torch::stable::new_empty(input, shape);
  if (tokens == 0) return out;

  const MaskedLinearProblem problem{data_type(input),
                                    tokens,
                                    structure,
                                    values.const_data_ptr(),
                                    input.const_data_ptr(),
                                    bias ? bias->const_data_ptr() : nullptr,
                                    residual ? residual->const_data_ptr() : nullptr,
                                    function,
                                    out.mutable_data_ptr()};
  const MaskedLinearKernels& kernels = active_masked_linear_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.scratch_bytes(structure));
  kernels.run(problem, scratch.data(), parallel);
  return out;
}

Tensor masked_linear_grad_values(Tensor grad_out, Tensor input, Tensor starts, Tensor order,
                                 Tensor block_columns, int64_t row_chunk, int64_t column_block) {
  constexpr const char* op = "masked_linear_grad_values";
  check_dtype_of_input(op, input);
  if (grad_out.dim() < 1) reject(op, "grad_out", "[..., rows]", describe(grad_out));
  const int64_t rows = grad_out.size(grad_out.dim() - 1), columns = input.size(input.dim() - 1);
  check_like(op, "grad_out", grad_out, shape_like(input, rows), input);
  const MaskedStructure structure =
      checked_structure(op, rows, columns, starts, order, block_columns, row_chunk, column_block);
  grad_out = as_contiguous(grad_out);
  input = as_contiguous(input);
  Tensor grad_values = torch::stable::full({block_columns.numel()}, 0, ScalarType::Float);
  const int64_t tokens = rows_of(input);
  if (tokens == 0) return grad_values;

  const MaskedLinearGradValuesProblem problem{data_type(input),
                                              tokens,
                                              structure,
                                              grad_out.const_data_ptr(),
                                              input.const_data_ptr(),
                                              static_cast<float*>(grad_values.mutable_data_ptr())};
  const MaskedLinearKernels& kernels = active_masked_linear_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.grad_values_scratch_bytes(structure));
  kernels.grad_values(problem, scratch.data(), parallel);
  return grad_values;
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("masked_linear", TORCH_BOX(&vleff::masked_linear));
  library.impl("masked_linear_grad_values", TORCH_BOX(&vleff::masked_linear_grad_values));
}

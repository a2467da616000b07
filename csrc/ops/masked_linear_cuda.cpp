#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "../kernels/cuda/masked_linear_problem.h"
#include "cuda_stream.h"
#include "masked_structure.h"

namespace vleff {
namespace {

int64_t checked_tokens(const char* op, const Tensor& input) {
  const int64_t tokens = rows_of(input);
  if (tokens > INT32_MAX) reject(op, "input", "at most 2^31 - 1 tokens", describe(input));
  return tokens;
}

// Only shapes are checked: reading the structure would wait for the device. The kernels pass over wrong
// numbers. The copy of the values by steps is for CPUs.
Tensor masked_linear_cuda(Tensor input, Tensor values, Tensor starts, Tensor order, Tensor block_columns,
                          int64_t rows, int64_t row_chunk, int64_t column_block, OptionalTensor bias,
                          OptionalTensor residual, std::string activation, OptionalTensor, OptionalTensor,
                          OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor) {
  constexpr const char* op = "masked_linear";
  const Device device = cuda_device_of(input);
  check_dtype_of_input(op, input, device);
  const int64_t columns = input.size(input.dim() - 1), tokens = checked_tokens(op, input);
  const MaskedStructure structure =
      shaped_structure(op, rows, columns, starts, order, block_columns, row_chunk, column_block, device);
  const std::vector<int64_t> shape = shape_like(input, rows);
  check_like(op, "values", values, {block_columns.numel()}, input);
  if (bias) check_like(op, "bias", *bias, {rows}, input);
  if (residual) check_like(op, "residual", *residual, shape, input);
  const Activation function = parse_activation(op, activation);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  input = as_contiguous(input);
  values = as_contiguous(values);
  bias = as_contiguous(bias);
  residual = as_contiguous(residual);
  Tensor out = torch::stable::new_empty(input, shape);
  const cuda::SparseLinearProblem problem{data_type(input),
                                          tokens,
                                          {structure, block_columns.numel()},
                                          values.const_data_ptr(),
                                          input.const_data_ptr(),
                                          bias ? bias->const_data_ptr() : nullptr,
                                          residual ? residual->const_data_ptr() : nullptr,
                                          function,
                                          out.mutable_data_ptr()};
  check_started(op, vleff_masked_linear_cuda(&problem, current_stream(input)));
  return out;
}

Tensor grad_values_cuda(Tensor grad_out, Tensor input, Tensor starts, Tensor order, Tensor block_columns,
                        int64_t row_chunk, int64_t column_block) {
  constexpr const char* op = "masked_linear_grad_values";
  const Device device = cuda_device_of(input);
  check_dtype_of_input(op, input, device);
  if (grad_out.dim() < 1) reject(op, "grad_out", "[..., rows]", describe(grad_out));
  const int64_t rows = grad_out.size(grad_out.dim() - 1), columns = input.size(input.dim() - 1);
  check_like(op, "grad_out", grad_out, shape_like(input, rows), input);
  const MaskedStructure structure =
      shaped_structure(op, rows, columns, starts, order, block_columns, row_chunk, column_block, device);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  grad_out = as_contiguous(grad_out);
  input = as_contiguous(input);
  // 0 where a wrong structure leaves out an element
  Tensor grad_values = torch::stable::new_zeros(input, {block_columns.numel()}, ScalarType::Float);
  const cuda::SparseGradientProblem problem{
      data_type(input),          checked_tokens(op, input), {structure, block_columns.numel()},
      grad_out.const_data_ptr(), input.const_data_ptr(),    grad_values.mutable_data_ptr<float>()};
  check_started(op, vleff_masked_linear_grad_values_cuda(&problem, current_stream(input)));
  return grad_values;
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("masked_linear", TORCH_BOX(&vleff::masked_linear_cuda));
  library.impl("masked_linear_grad_values", TORCH_BOX(&vleff::grad_values_cuda));
}

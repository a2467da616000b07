#include "../kernels/cpu/masked_linear.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "masked_structure.h"
#include "parallel.h"

namespace vleff {
namespace {

Tensor masked_linear(Tensor input, Tensor values, Tensor starts, Tensor order, Tensor block_columns,
                     int64_t rows, int64_t row_chunk, int64_t column_block, OptionalTensor bias,
                     OptionalTensor residual, std::string activation, OptionalTensor step_values,
                     OptionalTensor step_block_columns, OptionalTensor, OptionalTensor, OptionalTensor,
                     OptionalTensor) {
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
  const MaskedSteps steps = checked_steps(op, step_values, step_block_columns, values, block_columns);
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
                                    steps,
                                    input.const_data_ptr(),
                                    bias ? bias->const_data_ptr() : nullptr,
                                    residual ? residual->const_data_ptr() : nullptr,
                                    function,
                                    out.mutable_data_ptr()};
  const MaskedLinearKernels& kernels = active_masked_linear_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.scratch_bytes(structure, tokens));
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

#include "../kernels/cpu/masked_feed_forward.h"

#include <torch/csrc/stable/library.h>

#include "../kernels/cpu/isa.h"
#include "masked_structure.h"
#include "parallel.h"

VLEFF_DISPATCH(MaskedFeedForwardKernels, masked_feed_forward_kernels)

namespace vleff {
namespace {

Tensor masked_feed_forward(Tensor input, Tensor first_values, Tensor first_starts, Tensor first_order,
                           Tensor first_block_columns, int64_t first_rows, int64_t first_row_chunk,
                           int64_t first_column_block, OptionalTensor first_bias, std::string activation,
                           Tensor second_values, Tensor second_starts, Tensor second_order,
                           Tensor second_block_columns, int64_t second_rows, int64_t second_row_chunk,
                           int64_t second_column_block, OptionalTensor second_bias, OptionalTensor residual) {
  constexpr const char* op = "masked_feed_forward";
  check_dtype_of_input(op, input);
  const MaskedStructure first =
      checked_structure(op, first_rows, input.size(input.dim() - 1), first_starts, first_order,
                        first_block_columns, first_row_chunk, first_column_block);
  const MaskedStructure second =
      checked_structure(op, second_rows, first_rows, second_starts, second_order, second_block_columns,
                        second_row_chunk, second_column_block);
  const std::vector<int64_t> shape = shape_like(input, second_rows);
  check_like(op, "first_values", first_values, {first_block_columns.numel()}, input);
  check_like(op, "second_values", second_values, {second_block_columns.numel()}, input);
  if (first_bias) check_like(op, "first_bias", *first_bias, {first_rows}, input);
  if (second_bias) check_like(op, "second_bias", *second_bias, {second_rows}, input);
  if (residual) check_like(op, "residual", *residual, shape, input);
  const Activation function = parse_activation(op, activation);
  input = as_contiguous(input);
  first_values = as_contiguous(first_values);
  second_values = as_contiguous(second_values);
  for (OptionalTensor* tensor : {&first_bias, &second_bias, &residual})
    if (*tensor) *tensor = as_contiguous(**tensor);
  Tensor out = torch::stable::new_empty(input, shape);
  const int64_t tokens = rows_of(input);
  if (tokens == 0) return out;

  const auto data = [](const OptionalTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; };
  const MaskedFeedForwardProblem problem{data_type(input),
                                         tokens,
                                         first,
                                         second,
                                         first_values.const_data_ptr(),
                                         second_values.const_data_ptr(),
                                         input.const_data_ptr(),
                                         data(first_bias),
                                         data(second_bias),
                                         function,
                                         data(residual),
                                         out.mutable_data_ptr()};
  const MaskedFeedForwardKernels& kernels = active_masked_feed_forward_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.scratch_bytes(first, second));
  kernels.run(problem, scratch.data(), parallel);
  return out;
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("masked_feed_forward", TORCH_BOX(&vleff::masked_feed_forward));
}

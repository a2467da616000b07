#pragma once
#include <optional>
#include <string>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "../kernels/cpu/masked_linear.h"
#include "checks.h"

VLEFF_DISPATCH(MaskedLinearKernels, masked_linear_kernels)

// Checks of what the ops over sparse weights take.
namespace vleff {

inline Activation parse_activation(const char* op, const std::string& name) {
  const char* names[] = {"none", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu"};
  for (int i = 0; i < 6; ++i)
    if (name == names[i]) return static_cast<Activation>(i);
  reject(op, "activation", "none, relu, gelu, gelu_tanh, silu or quick_gelu", "'" + name + "'");
}

inline void check_dtype_of_input(const char* op, const Tensor& input,
                                 const Device& device = DeviceType::CPU) {
  const ScalarType type = input.scalar_type();
  if (!is_on(input, device) || input.dim() < 1 ||
      (type != ScalarType::Float && type != ScalarType::BFloat16 && type != ScalarType::Half)) {
    reject(op, "input", "float32, bfloat16 or float16 [..., columns] on " + name_of(device), describe(input));
  }
}

// The structure of a weight with `columns` columns, whose values are not checked.
inline MaskedStructure shaped_structure(const char* op, int64_t rows, int64_t columns, const Tensor& starts,
                                        const Tensor& order, const Tensor& block_columns, int64_t row_chunk,
                                        int64_t column_block, const Device& device) {
  const auto check_size = [&](const char* argument, int64_t value, int64_t largest) {
    if (value < 1 || value > largest) reject(op, argument, text("1 to ", largest), text(value));
  };
  check_size("row_chunk", row_chunk, largest_row_chunk);
  check_size("column_block", column_block, largest_column_block);
  if (rows < 1) reject(op, "rows", "at least 1", text(rows));
  if (columns < 1) reject(op, "input", "at least one column", text(columns));
  const int64_t blocks = (columns + column_block - 1) / column_block, elements = block_columns.numel();
  check_tensor(op, "starts", starts, {ScalarType::Int}, {rows * blocks + 1}, "[rows * blocks + 1]", device);
  check_tensor(op, "order", order, {ScalarType::Byte}, {rows * blocks}, "[rows * blocks]", device);
  check_tensor(op, "block_columns", block_columns, {ScalarType::Byte}, {any_size}, "[elements]", device);
  if (elements > INT32_MAX) reject(op, "block_columns", "at most 2^31 - 1 elements", text(elements));
  check_contiguous(op, "starts", starts);
  check_contiguous(op, "order", order);
  check_contiguous(op, "block_columns", block_columns);
  return {rows,
          columns,
          row_chunk,
          column_block,
          static_cast<const int32_t*>(starts.const_data_ptr()),
          static_cast<const uint8_t*>(order.const_data_ptr()),
          static_cast<const uint8_t*>(block_columns.const_data_ptr())};
}

// On the CPU. The kernels stay within their memory whatever `order` and `block_columns` hold; what they read
// depends on `starts`, which are checked.
inline MaskedStructure checked_structure(const char* op, int64_t rows, int64_t columns, const Tensor& starts,
                                         const Tensor& order, const Tensor& block_columns, int64_t row_chunk,
                                         int64_t column_block) {
  const MaskedStructure structure = shaped_structure(op, rows, columns, starts, order, block_columns,
                                                     row_chunk, column_block, DeviceType::CPU);
  const int64_t elements = block_columns.numel();
  if (!active_masked_linear_kernels().ascend(structure.starts, starts.numel(), elements)) {
    reject(op, "starts", text("numbers that never descend from 0 to ", elements, ", the elements"), "others");
  }
  return structure;
}

// The first size(s) of `like` with `width` as the last one
inline std::vector<int64_t> shape_like(const Tensor& like, int64_t width) {
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end());
  shape.back() = width;
  return shape;
}

inline void check_like(const char* op, const char* argument, const Tensor& tensor,
                       const std::vector<int64_t>& shape, const Tensor& input) {
  const Device device = input.device();
  bool fits = tensor.scalar_type() == input.scalar_type() && is_on(tensor, device) &&
              tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t d = 0; fits && d < shape.size(); ++d) fits = tensor.size(d) == shape[d];
  if (fits) return;
  std::string sizes;
  for (size_t d = 0; d < shape.size(); ++d) sizes += text(d ? ", " : "", shape[d]);
  reject(op, argument, name_of(input.scalar_type()) + " [" + sizes + "] on " + name_of(device),
         describe(tensor));
}

inline MaskedSteps checked_steps(const char* op, const OptionalTensor& values,
                                 const OptionalTensor& block_columns, const Tensor& like_values,
                                 const Tensor& like_columns) {
  if (!values || !block_columns) return {};
  check_like(op, "step_values", *values, {like_values.numel()}, like_values);
  check_like(op, "step_block_columns", *block_columns, {like_columns.numel()}, like_columns);
  check_contiguous(op, "step_values", *values);
  check_contiguous(op, "step_block_columns", *block_columns);
  return {values->const_data_ptr(), static_cast<const uint8_t*>(block_columns->const_data_ptr())};
}

inline int64_t rows_of(const Tensor& tensor) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) rows *= tensor.size(d);
  return rows;
}

}  // namespace vleff

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cuda/head_masked_linear_problem.h"
#include "cuda_arguments.h"
#include "head_masked_linear_checks.h"

namespace vleff {
namespace {

using torch::stable::accelerator::DeviceGuard;

// Kernels count tokens and the width in 32 bits; features are checked elsewhere.
void check_sizes(const char* op, const char* argument, const Tensor& tensor) {
  if (tensor.size(0) > INT32_MAX || tensor.size(1) > INT32_MAX) {
    reject(op, argument, "sizes of at most 2^31 - 1", describe(tensor));
  }
}

void check_row_index(const char* op, OptionalTensor& index, int64_t tokens, const Device& device) {
  if (!index) return;
  check_tensor(op, "index", *index, {ScalarType::Int, ScalarType::Long}, {tokens}, "[tokens]", device);
  if (index->numel() > INT32_MAX) reject(op, "index", "at most 2^31 - 1 row numbers", describe(*index));
  index = as_contiguous(*index);
}

Tensor project_cuda(Tensor input, Tensor weight, Tensor offsets, OptionalTensor head_mask,
                    OptionalTensor bias, OptionalTensor index, int64_t parts, std::optional<int64_t> heads) {
  constexpr const char* op = "head_masked_project";
  const Device device = cuda_device_of(input);
  check_element_type(op, "input", input, "[rows, d_in]", device);
  check_sizes(op, "input", input);
  const HeadMaskedWeight kind =
      checked_weight(op, HeadMaskedDirection::project, input, weight, head_mask, parts, heads, device);
  const int64_t features = kind.features.count();
  if (bias) check_tensor(op, "bias", *bias, {input.scalar_type()}, {features}, "[features]", device);
  check_row_index(op, index, any_size, device);
  const int64_t tokens = index ? index->numel() : input.size(0);
  const DeviceGuard guard(input.get_device_index());
  const CheckedMask mask(op, offsets, head_mask, tokens, kind.features.heads, device);
  Tensor out = torch::stable::new_empty(input, {tokens, features});
  input = as_contiguous(input);
  bias = as_contiguous(bias);
  const CheckedVectors vectors(weight, kind.direction);
  const cuda::HeadMaskedProblem problem{kind.direction,
                                        kind.type,
                                        kind.features,
                                        tokens,
                                        mask.mask,
                                        vectors.vectors,
                                        input.const_data_ptr(),
                                        row_index(index),
                                        input.size(0),
                                        data_or_null(bias),
                                        nullptr,
                                        out.mutable_data_ptr()};
  check_started(op, vleff_head_masked_linear_cuda(&problem, current_stream(input)));
  return out;
}

Tensor reduce_cuda(Tensor input, Tensor weight, Tensor offsets, OptionalTensor head_mask, OptionalTensor bias,
                   OptionalTensor residual) {
  constexpr const char* op = "head_masked_reduce";
  const Device device = cuda_device_of(input);
  check_element_type(op, "input", input, "[tokens, heads * head_dim]", device);
  check_sizes(op, "input", input);
  const ScalarType type = input.scalar_type();
  const HeadMaskedWeight kind =
      checked_weight(op, HeadMaskedDirection::reduce, input, weight, head_mask, 1, std::nullopt, device);
  check_sizes(op, "weight", weight);
  const int64_t tokens = input.size(0), width = kind.features.width;
  if (bias) check_tensor(op, "bias", *bias, {type}, {width}, "[d_out]", device);
  if (residual) check_tensor(op, "residual", *residual, {type}, {tokens, width}, "[tokens, d_out]", device);
  const DeviceGuard guard(input.get_device_index());
  const CheckedMask mask(op, offsets, head_mask, tokens, kind.features.heads, device);
  Tensor out = torch::stable::new_empty(input, {tokens, width});
  input = as_contiguous(input);
  bias = as_contiguous(bias);
  residual = as_contiguous(residual);
  const CheckedVectors vectors(weight, kind.direction);
  const cuda::HeadMaskedProblem problem{
      kind.direction, kind.type,          kind.features,          tokens,
      mask.mask,      vectors.vectors,    input.const_data_ptr(), {nullptr, false},
      tokens,         data_or_null(bias), data_or_null(residual), out.mutable_data_ptr()};
  check_started(op, vleff_head_masked_linear_cuda(&problem, current_stream(input)));
  return out;
}

std::tuple<Tensor, Tensor> grad_weight_cuda(Tensor of_features, Tensor of_width, Tensor offsets,
                                            OptionalTensor head_mask, OptionalTensor index, int64_t parts,
                                            bool bias_grad) {
  constexpr const char* op = "head_masked_grad_weight";
  const Device device = cuda_device_of(of_features);
  check_element_type(op, "of_features", of_features, "[tokens, parts * heads * head_dim]", device);
  check_sizes(op, "of_features", of_features);
  const ScalarType type = of_features.scalar_type();
  const int64_t tokens = of_features.size(0), count = of_features.size(1);
  check_tensor(op, "of_width", of_width, {type}, {index ? any_size : tokens, any_size}, "[rows, width]",
               device);
  check_sizes(op, "of_width", of_width);
  if (parts < 1) reject(op, "parts", "at least 1", text(parts));
  const HeadFeatures features =
      head_features(op, "of_features", of_features, count, parts,
                    heads_of(op, head_mask, std::nullopt, count / parts, device), of_width.size(1));
  check_row_index(op, index, tokens, device);
  const DeviceGuard guard(of_features.get_device_index());
  const CheckedMask mask(op, offsets, head_mask, tokens, features.heads, device);
  Tensor gradient = torch::stable::new_empty(of_features, {count, features.width});
  Tensor bias = torch::stable::new_empty(of_features, {bias_grad ? count : 0});
  of_features = as_contiguous(of_features);
  of_width = as_contiguous(of_width);
  const cuda::HeadMaskedGradWeightProblem problem{data_type(of_features),
                                                  features,
                                                  tokens,
                                                  mask.mask,
                                                  of_features.const_data_ptr(),
                                                  of_width.const_data_ptr(),
                                                  row_index(index),
                                                  of_width.size(0),
                                                  gradient.mutable_data_ptr(),
                                                  bias_grad ? bias.mutable_data_ptr() : nullptr};
  check_started(op, vleff_head_masked_grad_weight_cuda(&problem, current_stream(of_features)));
  return {gradient, bias};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("head_masked_project", TORCH_BOX(&vleff::project_cuda));
  library.impl("head_masked_reduce", TORCH_BOX(&vleff::reduce_cuda));
  library.impl("head_masked_grad_weight", TORCH_BOX(&vleff::grad_weight_cuda));
}

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "head_masked_linear_checks.h"
#include "huge_pages.h"

namespace vleff {
namespace {

void run(const HeadMaskedProblem& problem) {
  const HeadMaskedLinearKernels& kernels = active_head_masked_linear_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.scratch_bytes(problem));
  kernels.run(problem, scratch.data(), parallel);
}

Tensor project(Tensor input, Tensor weight, Tensor offsets, OptionalTensor head_mask, OptionalTensor bias,
               OptionalTensor index, int64_t parts, std::optional<int64_t> heads) {
  constexpr const char* op = "head_masked_project";
  check_element_type(op, "input", input, "[rows, d_in]");
  const HeadMaskedWeight kind =
      checked_weight(op, HeadMaskedDirection::project, input, weight, head_mask, parts, heads);
  const int64_t features = kind.features.count();
  if (bias) check_tensor(op, "bias", *bias, {input.scalar_type()}, {features}, "[features]");
  if (index) {
    check_tensor(op, "index", *index, {ScalarType::Int, ScalarType::Long}, {any_size}, "[tokens]");
    index = checked_index(op, "index", index, input.size(0));
  }
  const int64_t tokens = index ? index->numel() : input.size(0);
  const CheckedMask mask(op, offsets, head_mask, tokens, kind.features.heads);
  Tensor out = torch::stable::new_empty(input, {tokens, features});
  if (tokens == 0) return out;

  prefer_huge_pages(out);
  input = as_contiguous(input);
  if (bias) bias = as_contiguous(*bias);
  const WeightPanels panels(kind, weight, mask.mask);
  run({kind, tokens, mask.mask, panels.data(), input.const_data_ptr(),
       index ? index->const_data_ptr<int32_t>() : nullptr, bias ? bias->const_data_ptr() : nullptr, nullptr,
       out.mutable_data_ptr(), nullptr});
  return out;
}

Tensor reduce(Tensor input, Tensor weight, Tensor offsets, OptionalTensor head_mask, OptionalTensor bias,
              OptionalTensor residual) {
  constexpr const char* op = "head_masked_reduce";
  check_element_type(op, "input", input, "[tokens, heads * head_dim]");
  const ScalarType type = input.scalar_type();
  const HeadMaskedWeight kind =
      checked_weight(op, HeadMaskedDirection::reduce, input, weight, head_mask, 1, std::nullopt);
  const int64_t tokens = input.size(0), width = kind.features.width;
  if (bias) check_tensor(op, "bias", *bias, {type}, {width}, "[d_out]");
  if (residual) check_tensor(op, "residual", *residual, {type}, {tokens, width}, "[tokens, d_out]");
  const CheckedMask mask(op, offsets, head_mask, tokens, kind.features.heads);
  Tensor out = torch::stable::new_empty(input, {tokens, width});
  if (tokens == 0) return out;

  prefer_huge_pages(out);
  input = as_contiguous(input);
  if (bias) bias = as_contiguous(*bias);
  if (residual) residual = as_contiguous(*residual);
  const WeightPanels panels(kind, weight, mask.mask);
  run({kind, tokens, mask.mask, panels.data(), input.const_data_ptr(), nullptr,
       bias ? bias->const_data_ptr() : nullptr, residual ? residual->const_data_ptr() : nullptr,
       out.mutable_data_ptr(), nullptr});
  return out;
}

std::tuple<Tensor, Tensor> grad_weight(Tensor of_features, Tensor of_width, Tensor offsets,
                                       OptionalTensor head_mask, OptionalTensor index, int64_t parts,
                                       bool bias_grad) {
  constexpr const char* op = "head_masked_grad_weight";
  check_element_type(op, "of_features", of_features, "[tokens, parts * heads * head_dim]");
  const ScalarType type = of_features.scalar_type();
  const int64_t tokens = of_features.size(0), count = of_features.size(1);
  check_tensor(op, "of_width", of_width, {type}, {index ? any_size : tokens, any_size}, "[rows, width]");
  if (parts < 1) reject(op, "parts", "at least 1", text(parts));
  const HeadFeatures features =
      head_features(op, "of_features", of_features, count, parts,
                    heads_of(op, head_mask, std::nullopt, count / parts), of_width.size(1));
  if (index) {
    check_tensor(op, "index", *index, {ScalarType::Int, ScalarType::Long}, {tokens}, "[tokens]");
    index = checked_index(op, "index", index, of_width.size(0));
  }
  const CheckedMask mask(op, offsets, head_mask, tokens, features.heads);
  Tensor gradient = torch::stable::new_empty(of_features, {count, features.width});
  Tensor bias = torch::stable::new_empty(of_features, {bias_grad ? count : 0});

  of_features = as_contiguous(of_features);
  of_width = as_contiguous(of_width);
  const HeadMaskedGradWeightProblem problem{data_type(of_features),
                                            features,
                                            tokens,
                                            mask.mask,
                                            of_features.const_data_ptr(),
                                            of_width.const_data_ptr(),
                                            index ? index->const_data_ptr<int32_t>() : nullptr,
                                            gradient.mutable_data_ptr(),
                                            bias_grad ? bias.mutable_data_ptr() : nullptr,
                                            nullptr};
  const HeadMaskedLinearKernels& kernels = active_head_masked_linear_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.grad_weight_scratch_bytes(problem));
  kernels.grad_weight(problem, scratch.data(), parallel);
  return {gradient, bias};
}

Tensor pack(Tensor weight, std::string direction, int64_t heads, int64_t parts) {
  constexpr const char* op = "pack_head_masked_weight";
  check_element_type(op, "weight", weight, "[out_features, in_features]");
  const bool by_rows = direction == "project";
  if (!by_rows && direction != "reduce") reject(op, "direction", "project or reduce", "'" + direction + "'");
  if (!by_rows && parts != 1) reject(op, "parts", "1, as the direction is reduce", text(parts));
  const HeadFeatures features = head_features(op, "weight", weight, weight.size(by_rows ? 0 : 1), parts,
                                              heads, weight.size(by_rows ? 1 : 0));
  const HeadMaskedWeight kind{by_rows ? HeadMaskedDirection::project : HeadMaskedDirection::reduce,
                              data_type(weight), features};
  const HeadMaskedLinearKernels& kernels = active_head_masked_linear_kernels();
  const auto [rows, bytes] = packed_shape(kind);
  Tensor packed = torch::stable::empty({rows, bytes}, ScalarType::Byte);
  char* data = static_cast<char*>(packed.mutable_data_ptr());
  const PackedHeader header(kind, kernels);
  std::memcpy(data, &header, sizeof header);
  const int32_t offsets[] = {0, 0};
  const CheckedVectors vectors(weight, kind.direction);
  kernels.pack(kind, vectors.vectors, {1, heads, offsets, nullptr}, data + header_bytes, torch_parallel());
  return packed;
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("head_masked_project", TORCH_BOX(&vleff::project));
  library.impl("head_masked_reduce", TORCH_BOX(&vleff::reduce));
  library.impl("head_masked_grad_weight", TORCH_BOX(&vleff::grad_weight));
  library.impl("pack_head_masked_weight", TORCH_BOX(&vleff::pack));
}

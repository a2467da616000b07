#include "../kernels/cpu/trim_tokens.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "../kernels/cpu/isa.h"
#include "parallel.h"
#include "trim_checks.h"

VLEFF_DISPATCH(TrimTokensKernels, trim_tokens_kernels)

namespace vleff {
namespace {

constexpr const char* op = "trim_tokens";

std::tuple<Tensor, Tensor, Tensor, Tensor> trim_tokens(Tensor values, Tensor parts, Tensor local_weight,
                                                       Tensor global_weight, Tensor hidden_weight,
                                                       Tensor hidden_bias, Tensor score_weight,
                                                       Tensor score_bias, OptionalTensor other,
                                                       OptionalTensor other_weight,
                                                       OptionalTensor temperature, OptionalTensor pinned,
                                                       bool paired, double threshold, double eps) {
  const ScalarType type = checked_type(op, "values", values, "[tokens, width]");
  check_tensor(op, "values", values, {type}, {any_size, any_size}, "[tokens, width]");
  const int64_t tokens = values.size(0), width = values.size(1);
  check_tensor(op, "parts", parts, {ScalarType::Int}, {any_size}, "[parts + 1]");
  if (width < 1) reject(op, "values", "a width of at least 1", describe(values));
  if (parts.numel() < 1) reject(op, "parts", "at least one offset", describe(parts));
  if (tokens > INT32_MAX) reject(op, "values", "fewer than 2**31 tokens", describe(values));
  const int64_t count = parts.numel() - 1;
  parts = as_contiguous(parts);
  check_offsets(op, "parts", parts.const_data_ptr<int32_t>(), count, tokens, "parts", tokens);
  check_tensor(op, "local_weight", local_weight, {type}, {any_size, width}, "[rank, width]");
  const int64_t rank = local_weight.size(0);
  if (rank < 1) reject(op, "local_weight", "a rank of at least 1", describe(local_weight));
  local_weight = as_contiguous(local_weight);
  global_weight = checked_parameter(op, "global_weight", global_weight, type, {rank, width}, "[rank, width]");
  hidden_weight =
      checked_parameter(op, "hidden_weight", hidden_weight, type, {rank, 2 * rank}, "[rank, 2 * rank]");
  hidden_bias = checked_parameter(op, "hidden_bias", hidden_bias, type, {rank}, "[rank]");
  score_weight = checked_parameter(op, "score_weight", score_weight, type, {1, rank}, "[1, rank]");
  score_bias = checked_parameter(op, "score_bias", score_bias, type, {1}, "[1]");
  if (paired && other) reject(op, "other", "None, as parts are paired", describe(*other));
  if (paired && count % 2) reject(op, "parts", "an even number of parts, as they are paired", text(count));
  const bool has_other = paired || other;
  if (has_other != other_weight.has_value() || has_other != temperature.has_value()) {
    reject(op, "other_weight", "it and temperature just where parts are paired or there is an 'other'",
           other_weight ? "it" : "none");
  }
  int64_t other_width = width;
  if (other) {
    check_tensor(op, "other", *other, {ScalarType::Float}, {count, any_size}, "[parts, other width]");
    other = as_contiguous(*other);
    other_width = other->size(1);
  }
  if (has_other) {
    other_weight = checked_parameter(op, "other_weight", *other_weight, type, {rank, other_width},
                                     "[rank, other width]");
    temperature = checked_parameter(op, "temperature", *temperature, type, {1}, "[1]");
  }
  if (pinned) {
    check_tensor(op, "pinned", *pinned, {ScalarType::Bool}, {tokens}, "[tokens]");
    pinned = as_contiguous(*pinned);
  }
  if (!std::isfinite(threshold)) reject(op, "threshold", "a finite number", text(threshold));
  if (!(eps > 0)) reject(op, "eps", "a number above 0", text(eps));
  values = as_contiguous(values);

  Tensor pooled = torch::stable::empty({count, width}, ScalarType::Float);
  Tensor logits = torch::stable::empty({tokens}, ScalarType::Float);
  Tensor kept_parts = torch::stable::empty({count + 1}, ScalarType::Int);
  Tensor survivors = torch::stable::empty({tokens}, ScalarType::Int);
  const TrimTokensProblem problem{data_type(values),
                                  tokens,
                                  width,
                                  count,
                                  rank,
                                  values.const_data_ptr(),
                                  parts.const_data_ptr<int32_t>(),
                                  pinned ? pinned->const_data_ptr<bool>() : nullptr,
                                  local_weight.const_data_ptr(),
                                  global_weight.const_data_ptr(),
                                  hidden_weight.const_data_ptr(),
                                  hidden_bias.const_data_ptr(),
                                  score_weight.const_data_ptr(),
                                  only_element(score_bias),
                                  static_cast<float>(threshold),
                                  static_cast<float>(eps),
                                  paired,
                                  other ? other->const_data_ptr<float>() : nullptr,
                                  has_other ? other_weight->const_data_ptr() : nullptr,
                                  other_width,
                                  has_other ? only_element(*temperature) : 0.0f,
                                  pooled.mutable_data_ptr<float>(),
                                  logits.mutable_data_ptr<float>(),
                                  kept_parts.mutable_data_ptr<int32_t>(),
                                  survivors.mutable_data_ptr<int32_t>()};
  const TrimTokensKernels& kernels = active_trim_tokens_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(kernels.scratch_bytes(problem, parallel.threads));
  kernels.run(problem, scratch.data(), parallel);
  const int64_t kept = kept_parts.const_data_ptr<int32_t>()[count];
  return {torch::stable::narrow(survivors, 0, 0, kept), kept_parts, pooled, logits};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("trim_tokens", TORCH_BOX(&vleff::trim_tokens));
}

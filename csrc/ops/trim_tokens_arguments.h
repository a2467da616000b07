#pragma once
#include <cmath>

#include "trim_checks.h"

namespace vleff {

// The arguments of trim_tokens on any device, made contiguous and checked, but for the values of `parts`.
struct TrimTokensArguments {
  Tensor values, parts, local_weight, global_weight, hidden_weight, hidden_bias, score_weight, score_bias;
  OptionalTensor other, other_weight, temperature, pinned;
  bool paired;
  int64_t tokens = 0, width = 0, count = 0, rank = 0, other_width = 0;

  bool has_other() const { return other_weight.has_value(); }

  void check(const char* op, double threshold, double eps, const Device& device) {
    const ScalarType type = checked_type(op, "values", values, "[tokens, width]");
    check_tensor(op, "values", values, {type}, {any_size, any_size}, "[tokens, width]", device);
    tokens = values.size(0), width = values.size(1);
    check_tensor(op, "parts", parts, {ScalarType::Int}, {any_size}, "[parts + 1]", device);
    if (width < 1) reject(op, "values", "a width of at least 1", describe(values));
    if (parts.numel() < 1) reject(op, "parts", "at least one offset", describe(parts));
    if (tokens > INT32_MAX) reject(op, "values", "fewer than 2**31 tokens", describe(values));
    count = parts.numel() - 1;
    parts = as_contiguous(parts);
    if (device.is_cpu()) {
      check_offsets(op, "parts", parts.const_data_ptr<int32_t>(), count, tokens, "parts", tokens);
    }
    check_tensor(op, "local_weight", local_weight, {type}, {any_size, width}, "[rank, width]", device);
    rank = local_weight.size(0);
    if (rank < 1) reject(op, "local_weight", "a rank of at least 1", describe(local_weight));
    local_weight = as_contiguous(local_weight);
    const auto parameter = [&](const char* argument, const Tensor& tensor,
                               std::initializer_list<int64_t> shape, const char* shape_text) {
      return checked_parameter(op, argument, tensor, type, shape, shape_text, device);
    };
    global_weight = parameter("global_weight", global_weight, {rank, width}, "[rank, width]");
    hidden_weight = parameter("hidden_weight", hidden_weight, {rank, 2 * rank}, "[rank, 2 * rank]");
    hidden_bias = parameter("hidden_bias", hidden_bias, {rank}, "[rank]");
    score_weight = parameter("score_weight", score_weight, {1, rank}, "[1, rank]");
    score_bias = parameter("score_bias", score_bias, {1}, "[1]");
    if (paired && other) reject(op, "other", "None, as parts are paired", describe(*other));
    if (paired && count % 2) reject(op, "parts", "an even number of parts, as they are paired", text(count));
    const bool needs_other = paired || other;
    if (needs_other != other_weight.has_value() || needs_other != temperature.has_value()) {
      reject(op, "other_weight", "it and temperature just where parts are paired or there is an 'other'",
             other_weight ? "it" : "none");
    }
    other_width = width;
    if (other) {
      check_tensor(op, "other", *other, {ScalarType::Float}, {count, any_size}, "[parts, other width]",
                   device);
      other = as_contiguous(*other);
      other_width = other->size(1);
    }
    if (needs_other) {
      other_weight = parameter("other_weight", *other_weight, {rank, other_width}, "[rank, other width]");
      temperature = parameter("temperature", *temperature, {1}, "[1]");
    }
    if (pinned) {
      check_tensor(op, "pinned", *pinned, {ScalarType::Bool}, {tokens}, "[tokens]", device);
      pinned = as_contiguous(*pinned);
    }
    if (!std::isfinite(threshold)) reject(op, "threshold", "a finite number", text(threshold));
    if (!(eps > 0)) reject(op, "eps", "a number above 0", text(eps));
    values = as_contiguous(values);
  }
};

}  // namespace vleff

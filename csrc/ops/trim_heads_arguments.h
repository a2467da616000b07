#pragma once
#include <cmath>

#include "../kernels/cpu/trim_heads.h"
#include "trim_checks.h"

namespace vleff {

// The checked arguments of trim_heads and its results; holds the tensors that `problem` points into.
struct TrimHeadsArguments {
  TrimHeadsProblem problem;
  Tensor pooled;
  OptionalTensor memory_pooled;
  Tensor hidden_weight, hidden_bias, score_weight, score_bias, kept, logits;

  TrimHeadsArguments(const Tensor& pooled_, const OptionalTensor& memory_pooled_,
                     const Tensor& hidden_weight_, const Tensor& hidden_bias_, const Tensor& score_weight_,
                     const Tensor& score_bias_, double threshold, const Device& device)
      : pooled(pooled_), memory_pooled(memory_pooled_), hidden_weight(hidden_weight_) {
    constexpr const char* op = "trim_heads";
    check_tensor(op, "pooled", pooled, {ScalarType::Float}, {any_size, any_size}, "[batch, width]", device);
    const int64_t batch = pooled.size(0), width = pooled.size(1);
    int64_t memory_width = 0;
    if (memory_pooled) {
      check_tensor(op, "memory_pooled", *memory_pooled, {ScalarType::Float}, {batch, any_size},
                   "[batch, memory width]", device);
      memory_pooled = as_contiguous(*memory_pooled);
      memory_width = memory_pooled->size(1);
    }
    const ScalarType type = checked_type(op, "hidden_weight", hidden_weight, "[rank, widths]");
    hidden_weight = checked_parameter(op, "hidden_weight", hidden_weight, type,
                                      {any_size, width + memory_width}, "[rank, widths]", device);
    const int64_t rank = hidden_weight.size(0);
    hidden_bias = checked_parameter(op, "hidden_bias", hidden_bias_, type, {rank}, "[rank]", device);
    score_weight =
        checked_parameter(op, "score_weight", score_weight_, type, {any_size, rank}, "[heads, rank]", device);
    const int64_t heads = score_weight.size(0);
    score_bias = checked_parameter(op, "score_bias", score_bias_, type, {heads}, "[heads]", device);
    if (!std::isfinite(threshold)) reject(op, "threshold", "a finite number", text(threshold));
    pooled = as_contiguous(pooled);
    kept = torch::stable::new_empty(pooled, {batch, heads}, ScalarType::Bool);
    logits = torch::stable::new_empty(pooled, {batch, heads});
    problem = {
        data_type(hidden_weight),
        batch,
        rank,
        heads,
        {width, memory_width},
        {pooled.const_data_ptr<float>(), memory_pooled ? memory_pooled->const_data_ptr<float>() : nullptr},
        hidden_weight.const_data_ptr(),
        hidden_bias.const_data_ptr(),
        score_weight.const_data_ptr(),
        score_bias.const_data_ptr(),
        static_cast<float>(threshold),
        logits.mutable_data_ptr<float>(),
        kept.mutable_data_ptr<bool>()};
  }
};

}  // namespace vleff

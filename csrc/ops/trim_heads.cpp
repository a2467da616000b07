#include "../kernels/cpu/trim_heads.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "../kernels/cpu/isa.h"
#include "parallel.h"
#include "trim_checks.h"

VLEFF_DISPATCH(TrimHeadsKernels, trim_heads_kernels)

namespace vleff {
namespace {

constexpr const char* op = "trim_heads";

std::tuple<Tensor, Tensor> trim_heads(Tensor pooled, OptionalTensor memory_pooled, Tensor hidden_weight,
                                      Tensor hidden_bias, Tensor score_weight, Tensor score_bias,
                                      double threshold) {
  check_tensor(op, "pooled", pooled, {ScalarType::Float}, {any_size, any_size}, "[batch, width]");
  const int64_t batch = pooled.size(0), width = pooled.size(1);
  int64_t memory_width = 0;
  if (memory_pooled) {
    check_tensor(op, "memory_pooled", *memory_pooled, {ScalarType::Float}, {batch, any_size},
                 "[batch, memory width]");
    memory_pooled = as_contiguous(*memory_pooled);
    memory_width = memory_pooled->size(1);
  }
  const ScalarType type = checked_type(op, "hidden_weight", hidden_weight, "[rank, widths]");
  check_tensor(op, "hidden_weight", hidden_weight, {type}, {any_size, width + memory_width},
               "[rank, widths]");
  const int64_t rank = hidden_weight.size(0);
  hidden_weight = as_contiguous(hidden_weight);
  hidden_bias = checked_parameter(op, "hidden_bias", hidden_bias, type, {rank}, "[rank]");
  score_weight = checked_parameter(op, "score_weight", score_weight, type, {any_size, rank}, "[heads, rank]");
  const int64_t heads = score_weight.size(0);
  score_bias = checked_parameter(op, "score_bias", score_bias, type, {heads}, "[heads]");
  if (!std::isfinite(threshold)) reject(op, "threshold", "a finite number", text(threshold));
  pooled = as_contiguous(pooled);

  Tensor kept = torch::stable::empty({batch, heads}, ScalarType::Bool);
  Tensor logits = torch::stable::empty({batch, heads}, ScalarType::Float);
  const TrimHeadsProblem problem{
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
  const TrimHeadsKernels& kernels = active_trim_heads_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.scratch_bytes(rank));
  kernels.run(problem, scratch.data(), parallel);
  return {kept, logits};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("trim_heads", TORCH_BOX(&vleff::trim_heads));
}

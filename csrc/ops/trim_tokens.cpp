#include "../kernels/cpu/trim_tokens.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cpu/isa.h"
#include "parallel.h"
#include "trim_tokens_arguments.h"

VLEFF_DISPATCH(TrimTokensKernels, trim_tokens_kernels)

namespace vleff {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> trim_tokens(Tensor values, Tensor parts, Tensor local_weight,
                                                       Tensor global_weight, Tensor hidden_weight,
                                                       Tensor hidden_bias, Tensor score_weight,
                                                       Tensor score_bias, OptionalTensor other,
                                                       OptionalTensor other_weight,
                                                       OptionalTensor temperature, OptionalTensor pinned,
                                                       bool paired, double threshold, double eps) {
  TrimTokensArguments a{values,      parts,        local_weight, global_weight, hidden_weight,
                        hidden_bias, score_weight, score_bias,   other,         other_weight,
                        temperature, pinned,       paired};
  a.check("trim_tokens", threshold, eps, DeviceType::CPU);
  Tensor pooled = torch::stable::empty({a.count, a.width}, ScalarType::Float);
  Tensor logits = torch::stable::empty({a.tokens}, ScalarType::Float);
  Tensor kept_parts = torch::stable::empty({a.count + 1}, ScalarType::Int);
  Tensor survivors = torch::stable::empty({a.tokens}, ScalarType::Int);
  const TrimTokensProblem problem{data_type(a.values),
                                  a.tokens,
                                  a.width,
                                  a.count,
                                  a.rank,
                                  a.values.const_data_ptr(),
                                  a.parts.const_data_ptr<int32_t>(),
                                  a.pinned ? a.pinned->const_data_ptr<bool>() : nullptr,
                                  a.local_weight.const_data_ptr(),
                                  a.global_weight.const_data_ptr(),
                                  a.hidden_weight.const_data_ptr(),
                                  a.hidden_bias.const_data_ptr(),
                                  a.score_weight.const_data_ptr(),
                                  only_element(a.score_bias),
                                  static_cast<float>(threshold),
                                  static_cast<float>(eps),
                                  paired,
                                  a.other ? a.other->const_data_ptr<float>() : nullptr,
                                  a.has_other() ? a.other_weight->const_data_ptr() : nullptr,
                                  a.other_width,
                                  a.has_other() ? only_element(*a.temperature) : 0.0f,
                                  pooled.mutable_data_ptr<float>(),
                                  logits.mutable_data_ptr<float>(),
                                  kept_parts.mutable_data_ptr<int32_t>(),
                                  survivors.mutable_data_ptr<int32_t>()};
  const TrimTokensKernels& kernels = active_trim_tokens_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(kernels.scratch_bytes(problem, parallel.threads));
  kernels.run(problem, scratch.data(), parallel);
  const int64_t kept = kept_parts.const_data_ptr<int32_t>()[a.count];
  return {torch::stable::narrow(survivors, 0, 0, kept), kept_parts, pooled, logits};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("trim_tokens", TORCH_BOX(&vleff::trim_tokens));
}

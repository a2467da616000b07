#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cuda/trim_tokens_problem.h"
#include "cuda_arguments.h"
#include "trim_tokens_arguments.h"

namespace vleff {
namespace {

// How many tokens stay is not known here: `survivors` has room for all, and rows behind the last one are 0.
std::tuple<Tensor, Tensor, Tensor, Tensor> trim_tokens_cuda(Tensor values, Tensor parts, Tensor local_weight,
                                                            Tensor global_weight, Tensor hidden_weight,
                                                            Tensor hidden_bias, Tensor score_weight,
                                                            Tensor score_bias, OptionalTensor other,
                                                            OptionalTensor other_weight,
                                                            OptionalTensor temperature, OptionalTensor pinned,
                                                            bool paired, double threshold, double eps) {
  constexpr const char* op = "trim_tokens";
  const torch::stable::accelerator::DeviceGuard guard(values.get_device_index());
  TrimTokensArguments a{values,      parts,        local_weight, global_weight, hidden_weight,
                        hidden_bias, score_weight, score_bias,   other,         other_weight,
                        temperature, pinned,       paired};
  a.check(op, threshold, eps, cuda_device_of(values));
  if (a.rank > 4096) reject(op, "local_weight", "a rank of at most 4,096", text(a.rank));
  if (a.width > INT32_MAX) reject(op, "values", "a width of at most 2^31 - 1", text(a.width));
  const auto floats = [&](std::initializer_list<int64_t> shape) {
    return torch::stable::new_empty(a.values, shape, ScalarType::Float);
  };
  const Tensor statistics = floats({a.tokens, 2}), local = floats({a.tokens, a.rank});
  const Tensor from_pooled = floats({a.count, a.rank}),
               direction = floats({a.has_other() ? a.count : 0, a.rank});
  const Tensor pooled = floats({a.count, a.width}), logits = floats({a.tokens});
  const Tensor kept_parts = torch::stable::new_empty(a.parts, {a.count + 1});
  const Tensor survivors = torch::stable::new_empty(a.parts, {a.tokens});
  const cuda::TrimTokensProblem problem{data_type(a.values),
                                        a.tokens,
                                        a.width,
                                        a.count,
                                        a.rank,
                                        a.values.const_data_ptr(),
                                        a.parts.const_data_ptr<int32_t>(),
                                        static_cast<const bool*>(data_or_null(a.pinned)),
                                        a.local_weight.const_data_ptr(),
                                        a.global_weight.const_data_ptr(),
                                        a.hidden_weight.const_data_ptr(),
                                        a.hidden_bias.const_data_ptr(),
                                        a.score_weight.const_data_ptr(),
                                        a.score_bias.const_data_ptr(),
                                        static_cast<float>(threshold),
                                        static_cast<float>(eps),
                                        paired,
                                        static_cast<const float*>(data_or_null(a.other)),
                                        data_or_null(a.other_weight),
                                        a.other_width,
                                        data_or_null(a.temperature),
                                        statistics.mutable_data_ptr<float>(),
                                        local.mutable_data_ptr<float>(),
                                        from_pooled.mutable_data_ptr<float>(),
                                        direction.mutable_data_ptr<float>(),
                                        pooled.mutable_data_ptr<float>(),
                                        logits.mutable_data_ptr<float>(),
                                        kept_parts.mutable_data_ptr<int32_t>(),
                                        survivors.mutable_data_ptr<int32_t>()};
  check_started(op, vleff_trim_tokens_cuda(&problem, current_stream(values)));
  return {survivors, kept_parts, pooled, logits};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("trim_tokens", TORCH_BOX(&vleff::trim_tokens_cuda));
}

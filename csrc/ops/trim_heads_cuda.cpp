#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cuda/trim_heads_problem.h"
#include "cuda_arguments.h"
#include "trim_heads_arguments.h"

namespace vleff {
namespace {

std::tuple<Tensor, Tensor> trim_heads_cuda(Tensor pooled, OptionalTensor memory_pooled, Tensor hidden_weight,
                                           Tensor hidden_bias, Tensor score_weight, Tensor score_bias,
                                           double threshold) {
  constexpr const char* op = "trim_heads";
  const torch::stable::accelerator::DeviceGuard guard(pooled.get_device_index());
  const TrimHeadsArguments arguments(pooled, memory_pooled, hidden_weight, hidden_bias, score_weight,
                                     score_bias, threshold, cuda_device_of(pooled));
  const TrimHeadsProblem& problem = arguments.problem;
  if (problem.rank > 8192) reject(op, "hidden_weight", "a rank of at most 8,192", text(problem.rank));
  if (problem.heads > 8192) reject(op, "score_weight", "at most 8,192 heads", text(problem.heads));
  check_started(op, vleff_trim_heads_cuda(&problem, current_stream(pooled)));
  return {arguments.kept, arguments.logits};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("trim_heads", TORCH_BOX(&vleff::trim_heads_cuda));
}

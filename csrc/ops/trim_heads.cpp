#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cpu/isa.h"
#include "parallel.h"
#include "trim_heads_arguments.h"

VLEFF_DISPATCH(TrimHeadsKernels, trim_heads_kernels)

namespace vleff {
namespace {

std::tuple<Tensor, Tensor> trim_heads(Tensor pooled, OptionalTensor memory_pooled, Tensor hidden_weight,
                                      Tensor hidden_bias, Tensor score_weight, Tensor score_bias,
                                      double threshold) {
  const TrimHeadsArguments arguments(pooled, memory_pooled, hidden_weight, hidden_bias, score_weight,
                                     score_bias, threshold, DeviceType::CPU);
  const TrimHeadsKernels& kernels = active_trim_heads_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.scratch_bytes(arguments.problem.rank));
  kernels.run(arguments.problem, scratch.data(), parallel);
  return {arguments.kept, arguments.logits};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("trim_heads", TORCH_BOX(&vleff::trim_heads));
}

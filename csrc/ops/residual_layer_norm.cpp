#include "../kernels/cpu/residual_layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "parallel.h"
#include "residual_layer_norm_checks.h"
#include "torch_ops.h"

VLEFF_DISPATCH(ResidualLayerNormKernels, residual_layer_norm_kernels)

namespace vleff {
namespace {

std::tuple<Tensor, Tensor> residual_layer_norm_cpu(Tensor input, OptionalTensor residual, Tensor weight,
                                                   Tensor bias, double eps, bool return_sum) {
  LayerNormTensors tensors(input, residual, weight, bias, eps, return_sum);
  if (tensors.rows == 0) return {tensors.normalized, tensors.sum};

  const ResidualLayerNormProblem problem{data_type(tensors.input),
                                         tensors.rows,
                                         tensors.width,
                                         tensors.input.const_data_ptr(),
                                         tensors.residual ? tensors.residual->const_data_ptr() : nullptr,
                                         tensors.weight.const_data_ptr(),
                                         tensors.bias.const_data_ptr(),
                                         static_cast<float>(eps),
                                         tensors.normalized.mutable_data_ptr(),
                                         return_sum ? tensors.sum.mutable_data_ptr() : nullptr};
  const ResidualLayerNormKernels& kernels = active_residual_layer_norm_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.scratch_bytes(tensors.width));
  kernels.run(problem, scratch.data(), parallel);
  return {tensors.normalized, tensors.sum};
}

// By torch's own passes.
std::tuple<Tensor, Tensor> residual_layer_norm_elsewhere(Tensor input, OptionalTensor residual, Tensor weight,
                                                         Tensor bias, double eps, bool return_sum) {
  check_residual_layer_norm(input, residual, weight, bias, eps);
  const Tensor sum = residual ? add(input, *residual) : input;
  const std::vector<int64_t> width = {input.size(input.dim() - 1)}, none = {0};
  const Tensor normalized =
      as_contiguous(call_op<Tensor>("aten::layer_norm", "", sum, width, std::optional<Tensor>(weight),
                                    std::optional<Tensor>(bias), eps, true));
  if (!return_sum) return {normalized, torch::stable::new_empty(input, none)};
  return {normalized, residual ? as_contiguous(sum) : torch::stable::clone(as_contiguous(sum))};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("residual_layer_norm", TORCH_BOX(&vleff::residual_layer_norm_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(vleff, CompositeExplicitAutograd, library) {
  library.impl("residual_layer_norm", TORCH_BOX(&vleff::residual_layer_norm_elsewhere));
}

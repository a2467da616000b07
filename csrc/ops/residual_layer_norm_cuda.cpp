#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cuda/residual_layer_norm_problem.h"
#include "cuda_arguments.h"
#include "residual_layer_norm_checks.h"

namespace vleff {
namespace {

std::tuple<Tensor, Tensor> residual_layer_norm_cuda(Tensor input, OptionalTensor residual, Tensor weight,
                                                    Tensor bias, double eps, bool return_sum) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  LayerNormTensors tensors(input, residual, weight, bias, eps, return_sum);
  if (tensors.rows == 0) return {tensors.normalized, tensors.sum};
  if (tensors.width > INT32_MAX) {
    reject("residual_layer_norm", "input", "a width of at most 2^31 - 1", describe(input));
  }
  const cuda::LayerNormProblem problem{data_type(tensors.input),
                                       tensors.rows,
                                       tensors.width,
                                       tensors.input.const_data_ptr(),
                                       data_or_null(tensors.residual),
                                       tensors.weight.const_data_ptr(),
                                       tensors.bias.const_data_ptr(),
                                       static_cast<float>(eps),
                                       tensors.normalized.mutable_data_ptr(),
                                       return_sum ? tensors.sum.mutable_data_ptr() : nullptr};
  check_started("residual_layer_norm",
                vleff_residual_layer_norm_cuda(&problem, current_stream(tensors.input)));
  return {tensors.normalized, tensors.sum};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("residual_layer_norm", TORCH_BOX(&vleff::residual_layer_norm_cuda));
}

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../kernels/cuda/residual_layer_norm_problem.h"
#include "cuda_arguments.h"
#include "residual_layer_norm_checks.h"

namespace vleff {
namespace {

std::tuple<Tensor, Tensor> residual_layer_norm_cuda(Tensor input, OptionalTensor residual, Tensor weight,
                                                    Tensor bias, double eps, bool return_sum) {
  check_residual_layer_norm(input, residual, weight, bias, eps);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  input = as_contiguous(input);
  if (residual) residual = as_contiguous(*residual);
  weight = as_contiguous(weight);
  bias = as_contiguous(bias);
  const std::vector<int64_t> none = {0};
  Tensor normalized = torch::stable::new_empty(input, input.sizes());
  Tensor sum =
      return_sum ? torch::stable::new_empty(input, input.sizes()) : torch::stable::new_empty(input, none);
  const int64_t width = input.size(input.dim() - 1), rows = input.numel() / width;
  if (rows == 0) return {normalized, sum};
  if (width > INT32_MAX) {
    reject("residual_layer_norm", "input", "a width of at most 2^31 - 1", describe(input));
  }
  const cuda::LayerNormProblem problem{data_type(input),
                                       rows,
                                       width,
                                       input.const_data_ptr(),
                                       data_or_null(residual),
                                       weight.const_data_ptr(),
                                       bias.const_data_ptr(),
                                       static_cast<float>(eps),
                                       normalized.mutable_data_ptr(),
                                       return_sum ? sum.mutable_data_ptr() : nullptr};
  check_started("residual_layer_norm", vleff_residual_layer_norm_cuda(&problem, current_stream(input)));
  return {normalized, sum};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("residual_layer_norm", TORCH_BOX(&vleff::residual_layer_norm_cuda));
}

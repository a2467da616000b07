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
  check_residual_layer_norm(input, residual, weight, bias, eps);
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

  const ResidualLayerNormProblem problem{data_type(input),
                                         rows,
                                         width,
                                         input.const_data_ptr(),
                                         residual ? residual->const_data_ptr() : nullptr,
                                         weight.const_data_ptr(),
                                         bias.const_data_ptr(),
                                         static_cast<float>(eps),
                                         normalized.mutable_data_ptr(),
                                         return_sum ? sum.mutable_data_ptr() : nullptr};
  const ResidualLayerNormKernels& kernels = active_residual_layer_norm_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.scratch_bytes(width));
  kernels.run(problem, scratch.data(), parallel);
  return {normalized, sum};
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

#include "../kernels/cpu/residual_layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "checks.h"
#include "parallel.h"
#include "torch_ops.h"

VLEFF_DISPATCH(ResidualLayerNormKernels, residual_layer_norm_kernels)

namespace vleff {
namespace {

constexpr const char* op = "residual_layer_norm";

// Shapes and dtypes; on any device.
void check(const Tensor& input, const OptionalTensor& residual, const Tensor& weight, const Tensor& bias,
           double eps) {
  const ScalarType type = input.scalar_type();
  const bool type_fits =
      type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
  if (!type_fits || input.dim() < 1 || input.size(input.dim() - 1) < 1) {
    reject(op, "input", "float32, bfloat16 or float16 [..., width], width at least 1", describe(input));
  }
  const int64_t width = input.size(input.dim() - 1);
  const auto check_argument = [&](const char* argument, const Tensor& tensor, bool shape_fits,
                                  const std::string& shape) {
    if (!shape_fits || tensor.scalar_type() != type || tensor.device() != input.device()) {
      reject(op, argument, name_of(type) + " " + shape + " on the device of 'input'", describe(tensor));
    }
  };
  if (residual) {
    bool same = residual->dim() == input.dim();
    for (int64_t d = 0; same && d < input.dim(); ++d) same = residual->size(d) == input.size(d);
    check_argument("residual", *residual, same, "of the shape of 'input'");
  }
  check_argument("weight", weight, weight.dim() == 1 && weight.size(0) == width, text("[", width, "]"));
  check_argument("bias", bias, bias.dim() == 1 && bias.size(0) == width, text("[", width, "]"));
  if (!(eps >= 0)) reject(op, "eps", "a number of at least 0", text(eps));
}

std::tuple<Tensor, Tensor> residual_layer_norm_cpu(Tensor input, OptionalTensor residual, Tensor weight,
                                                   Tensor bias, double eps, bool return_sum) {
  check(input, residual, weight, bias, eps);
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
  check(input, residual, weight, bias, eps);
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

#pragma once
#include <vector>

#include "checks.h"

namespace vleff {

// Shapes and dtypes; on any device.
inline void check_residual_layer_norm(const Tensor& input, const OptionalTensor& residual,
                                      const Tensor& weight, const Tensor& bias, double eps) {
  constexpr const char* op = "residual_layer_norm";
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

// Checked and contiguous, and tensors for the results.
struct LayerNormTensors {
  Tensor input, weight, bias;
  OptionalTensor residual;
  Tensor normalized, sum;  // sum is empty unless asked for
  int64_t rows, width;

  LayerNormTensors(const Tensor& all_input, const OptionalTensor& all_residual, const Tensor& all_weight,
                   const Tensor& all_bias, double eps, bool return_sum) {
    check_residual_layer_norm(all_input, all_residual, all_weight, all_bias, eps);
    input = as_contiguous(all_input);
    if (all_residual) residual = as_contiguous(*all_residual);
    weight = as_contiguous(all_weight);
    bias = as_contiguous(all_bias);
    const std::vector<int64_t> none = {0};
    normalized = torch::stable::new_empty(input, input.sizes());
    sum = return_sum ? torch::stable::new_empty(input, input.sizes()) : torch::stable::new_empty(input, none);
    width = input.size(input.dim() - 1);
    rows = input.numel() / width;
  }
};

}  // namespace vleff

#pragma once
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

}  // namespace vleff

#pragma once
#include "checks.h"

// What vocabulary_log_probs checks on every device: all but the values in tensors.
namespace vleff {

inline void check_vocabulary_operands(const char* op, const Tensor& hidden, const Tensor& weight,
                                      const OptionalTensor& bias, const Device& device) {
  check_tensor(op, "hidden", hidden, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
               {any_size, any_size}, "[rows, width]", device);
  const ScalarType type = hidden.scalar_type();
  const int64_t width = hidden.size(1);
  if (width < 1) reject(op, "hidden", "at least one column", describe(hidden));
  check_tensor(op, "weight", weight, {type}, {any_size, width}, "[words, width]", device);
  const int64_t words = weight.size(0);
  if (words < 1 || words > INT32_MAX) {
    reject(op, "weight", "from 1 to 2^31 - 1 words", describe(weight));
  }
  if (bias) check_tensor(op, "bias", *bias, {type}, {words}, "[words]", device);
}

inline void check_vocabulary_gradient(const char* op, const Tensor& hidden, const Tensor& grad_log_probs,
                                      const Tensor& statistics, const Device& device) {
  const int64_t rows = hidden.size(0);
  check_tensor(op, "grad_log_probs", grad_log_probs, {ScalarType::Float}, {rows}, "[rows]", device);
  check_tensor(op, "statistics", statistics, {ScalarType::Float}, {rows, 2}, "[rows, 2]", device);
}

}  // namespace vleff

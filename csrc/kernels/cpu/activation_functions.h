#pragma once
#include "activation.h"
#include "simd.h"

namespace vleff::VLEFF_ISA {

constexpr float log2_e = 1.44269504f;

// x / (1 + exp(-inner)); beyond the range of exp2 x * 0, so that -inf gives NaN as in torch
inline Float logistic_gate(Float x, Float inner) {
  const Float exponent = inner * -log2_e;
  const Float gate = 1.0f / (1.0f + exp2(exponent));
  return x * (exponent > 127.0f ? Float{} : gate);
}

// 1 / (1 + exp(-x))
inline Float logistic(Float x) {
  return logistic_gate(broadcast(1.0f), x);
}

inline Float hyperbolic_tangent(Float x) {
  const Float size = x < 0.0f ? -x : x;
  const Float exponent = size * (2.0f * log2_e);
  const Float large = 1.0f - 2.0f / (1.0f + exp2(exponent > 126.0f ? broadcast(126.0f) : exponent));
  // minimax on [-0.625, 0.625], where the difference above would lose digits
  const Float square = x * x;
  Float p = broadcast(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Float small = x + x * square * p;
  return size < 0.625f ? small : x < 0.0f ? -large : large;
}

inline Float quick_gelu(Float x) {
  return logistic_gate(x, 1.702f * x);
}

// x * (1 + erf(x / sqrt(2))) / 2
inline Float gelu(Float x) {
  const Float size = x < 0.0f ? -x : x;
  const Float z = size * 0.707106781f;
  // erfc(z) = t P(t) exp(-z^2) with t = 1 / (1 + 0.35 z): minimax, absolute error 3e-9
  const Float t = 1.0f / (1.0f + 0.35f * z);
  Float p = broadcast(-1.926166966e-1f);
  p = p * t + 7.451475848e-1f;
  p = p * t - 6.233546083e-1f;
  p = p * t + 6.205664299e-1f;
  p = p * t + 3.153644826e-2f;
  p = p * t + 2.225480108e-1f;
  p = p * t + 1.961728282e-1f;
  const Float tail = 0.5f * size * (p * t) * exp2(z * z * -log2_e);
  return x < 0.0f ? -tail : x - tail;
}

inline Float activate(Float x, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return x < 0.0f ? Float{} : x;
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:  // (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y))
      return logistic_gate(x, 1.59576912f * (x + 0.044715f * x * x * x));
    case Activation::silu:
      return logistic_gate(x, x);
    case Activation::quick_gelu:
      return quick_gelu(x);
    default:
      return x;
  }
}

}  // namespace vleff::VLEFF_ISA

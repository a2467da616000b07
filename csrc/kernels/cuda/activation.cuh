#pragma once
#include "../cpu/activation.h"
#include "device.cuh"

// The activation functions of the CPU kernels, by the same formulas.
namespace vleff::cuda {

// x / (1 + exp(-inner)); beyond the range of exp2 x * 0, so that -inf gives NaN as in torch
__device__ __forceinline__ float logistic_gate(float x, float inner) {
  const float exponent = inner * -1.44269504f;
  return x * (exponent > 127.0f ? 0.0f : 1.0f / (1.0f + exp2_approximate(exponent)));
}

// x * (1 + erf(x / sqrt(2))) / 2
__device__ __forceinline__ float gelu(float x) {
  const float size = fabsf(x), z = size * 0.707106781f;
  // erfc(z) = t P(t) exp(-z^2) with t = 1 / (1 + 0.35 z): minimax, absolute error 3e-9
  const float t = 1.0f / (1.0f + 0.35f * z);
  float p = -1.926166966e-1f;
  p = p * t + 7.451475848e-1f;
  p = p * t - 6.233546083e-1f;
  p = p * t + 6.205664299e-1f;
  p = p * t + 3.153644826e-2f;
  p = p * t + 2.225480108e-1f;
  p = p * t + 1.961728282e-1f;
  const float tail = 0.5f * size * (p * t) * exp2_approximate(z * z * -1.44269504f);
  return x < 0.0f ? -tail : x - tail;
}

__device__ __forceinline__ float activate(float x, Activation activation) {
  if (activation == Activation::none) return x;
  if (activation == Activation::relu) return x < 0.0f ? 0.0f : x;
  if (activation == Activation::gelu) return gelu(x);
  if (activation == Activation::silu) return logistic_gate(x, x);
  if (activation == Activation::quick_gelu) return logistic_gate(x, 1.702f * x);
  // gelu_tanh: (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y))
  return logistic_gate(x, 1.59576912f * (x + 0.044715f * x * x * x));
}

}  // namespace vleff::cuda

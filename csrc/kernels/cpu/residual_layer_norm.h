#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"

namespace vleff {

// sum = input + residual; normalized = (sum - mean(sum)) / sqrt(variance(sum) + eps) * weight + bias, each
// row by itself. All arrays have the problem's type; computed in float32, and rounded only where stored.
struct ResidualLayerNormProblem {
  DataType type;
  int64_t rows, width;   // width at least 1
  const void* input;     // [rows, width]
  const void* residual;  // [rows, width] or null: sum = input
  const void* weight;    // [width]
  const void* bias;      // [width]
  float eps;
  void* normalized;  // [rows, width]
  void* sum;         // [rows, width] or null: not wanted
};

// scratch: 64-byte aligned, parallel.threads * scratch_bytes(width) bytes.
struct ResidualLayerNormKernels {
  int64_t (*scratch_bytes)(int64_t width);
  void (*run)(const ResidualLayerNormProblem&, void* scratch, const Parallel&);
};

}  // namespace vleff

#pragma once
#include "masked_linear.h"

namespace vleff {

// out = activation(input * first^T + first_bias) * second^T + second_bias + residual. Arrays have the
// problem's type. Between the two products a panel of tokens keeps its layout; it is rounded to the type, so
// that the bits are those of two masked_linear.
struct MaskedFeedForwardProblem {
  DataType type;
  int64_t tokens;
  MaskedStructure first, second;  // second.columns = first.rows
  const void *first_values, *second_values;
  const void* input;  // [tokens, first.columns]
  const void *first_bias, *second_bias;
  Activation activation;
  const void* residual;  // [tokens, second.rows] or null
  void* out;             // [tokens, second.rows]
};

// scratch: 64-byte aligned, parallel.threads * scratch_bytes(...) bytes.
struct MaskedFeedForwardKernels {
  int64_t (*scratch_bytes)(const MaskedStructure& first, const MaskedStructure& second);
  void (*run)(const MaskedFeedForwardProblem&, void* scratch, const Parallel&);
};

}  // namespace vleff

#pragma once
#include <cstdint>

#include "../cpu/masked_linear.h"

namespace vleff::cuda {

// A sparse matrix, its arrays on the device. Wrong numbers in them are clamped or passed over, so that they
// read and write nothing out of bounds.
struct SparseMatrix {
  MaskedStructure structure;
  int64_t elements;
};

// The function is that of vleff::MaskedLinearProblem. Unlike there, zeros are multiplied too.
struct SparseLinearProblem {
  DataType type;
  int64_t tokens;  // at most 2^31 - 1
  SparseMatrix weight;
  const void* values;    // [elements]
  const void* input;     // [tokens, columns]
  const void* bias;      // [rows] or null
  const void* residual;  // [tokens, rows] or null
  Activation activation;
  void* out;  // [tokens, rows], 16-byte aligned
};

// grad_values[e] = sum over tokens of grad_out[token, row of e] * input[token, column of e]
struct SparseGradientProblem {
  DataType type;
  int64_t tokens;  // at most 2^31 - 1
  SparseMatrix weight;
  const void* grad_out;  // [tokens, rows]
  const void* input;     // [tokens, columns]
  float* grad_values;    // [elements]
};

}  // namespace vleff::cuda

// Start a kernel on a CUDA stream and return at once: 0, or a CUDA error number.
extern "C" int vleff_masked_linear_cuda(const vleff::cuda::SparseLinearProblem* problem, void* stream);
extern "C" int vleff_masked_linear_grad_values_cuda(const vleff::cuda::SparseGradientProblem* problem,
                                                    void* stream);

#pragma once
#include <cstdint>

#include "../cpu/head_masked_linear.h"
#include "row_index.h"

// The functions are those of the CPU kernels. Pointers are on the device, all else on the host. Wrong offsets
// and row numbers read and write nothing out of bounds. Tokens from offsets[batch] on belong to no sample and
// keep no head.
namespace vleff::cuda {

struct HeadMaskedProblem {
  HeadMaskedDirection direction;
  DataType type;
  HeadFeatures features;  // reduce: one part
  int64_t tokens;         // at most 2^31 - 1, as features and width
  HeadMask mask;
  HeadVectors weight;
  const void* input;     // project: [stored, width]; reduce: [tokens, features]
  RowIndex index;        // project: [tokens], the rows of the tokens
  int64_t stored;        // project: rows of `input`
  const void* bias;      // project: [features]; reduce: [width]; or null
  const void* residual;  // reduce: [tokens, width] or null
  void* out;             // project: [tokens, features]; reduce: [tokens, width]
};

struct HeadMaskedGradWeightProblem {
  DataType type;
  HeadFeatures features;
  int64_t tokens;
  HeadMask mask;
  const void* of_features;  // [tokens, features]
  const void* of_width;     // [stored, width]
  RowIndex index;           // [tokens], the rows of the tokens in of_width
  int64_t stored;
  void* grad_weight;  // [features, width]
  void* grad_bias;    // [features] or null
};

}  // namespace vleff::cuda

// Start the kernels on a CUDA stream and return at once: 0, or a CUDA error number.
extern "C" int vleff_head_masked_linear_cuda(const vleff::cuda::HeadMaskedProblem* problem, void* stream);
extern "C" int vleff_head_masked_grad_weight_cuda(const vleff::cuda::HeadMaskedGradWeightProblem* problem,
                                                  void* stream);

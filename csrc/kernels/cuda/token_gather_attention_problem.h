#pragma once
#include <cstdint>

#include "../cpu/token_gather_attention.h"
#include "row_index.h"

namespace vleff::cuda {

// One side of the attention: queries, or keys with values. Pointers are on the device, all else on the host.
struct RaggedSide {
  const int32_t* offsets;  // [batch + 1]
  RowIndex index;
  int64_t stored;   // rows of the tensors
  int64_t total;    // rows of the batch, at most 2^31 - 1; offsets may end earlier
  int64_t longest;  // at least the longest sample's rows
};

// The function is that of vleff::AttentionProblem. Offsets and row numbers are clamped, so that wrong ones
// read and write nothing out of bounds; rows that wrong offsets leave to no sample keep undefined values.
// Rows from offsets[batch] to total belong to no sample: their out is 0, lse -inf, importance 0.
struct AttentionProblem {
  DataType type;
  int64_t batch, heads, head_dim;  // head_dim in [1, 256]
  HeadRows q, k, v;
  RaggedSide queries, keys;
  const uint8_t* head_mask;  // [batch, heads], 0 = dropped, or null
  const float* key_bias;     // [keys.total] or null
  float scale;
  bool causal;
  float dropout_p;      // in [0, 1)
  const int64_t* seed;  // one element; null when dropout_p is 0
  void* out;            // [queries.total, heads, head_dim], 16-byte aligned
  float* lse;           // [queries.total, heads]
  float* importance;    // [keys.total, heads] or null
};

// Gradients are per row of the batch, also where rows were gathered: the caller sums them.
struct AttentionGradientProblem {
  AttentionProblem attention;  // out and lse as forward made them
  const void* grad_out;        // [queries.total, heads, head_dim], the problem's type
  const float* grad_lse;       // [queries.total, heads] or null
  bool float32_queries,
      float32_keys;      // whether gradients of that side are float32, or else the problem's type
  void* grad_q;          // [queries.total, heads, head_dim]
  void* grad_k;          // [keys.total, heads, head_dim]
  void* grad_v;          // [keys.total, heads, head_dim]
  float* grad_key_bias;  // [keys.total] or null
  // Scratch memory
  float* delta;            // [queries.total, heads]
  float* head_key_biases;  // [heads, keys.total] where there is a grad_key_bias
};

}  // namespace vleff::cuda

// Start the kernels on a CUDA stream and return at once: 0, or a CUDA error number.
extern "C" int vleff_token_gather_attention_cuda(const vleff::cuda::AttentionProblem* problem, void* stream);
extern "C" int vleff_token_gather_attention_backward_cuda(
    const vleff::cuda::AttentionGradientProblem* problem, void* stream);

// A CUDA error number in words.
extern "C" const char* vleff_cuda_error_text(int error);

#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"

namespace vleff {

// A [rows, heads, head_dim] operand whose last dimension is contiguous; strides are in elements.
struct HeadRows {
  const void* data;
  int64_t row_stride;
  int64_t head_stride;
};

// Attention of a ragged batch. For sample b, head h, queries i and keys j of that sample:
//   logits(i, j) = scale * <q_i, k_j> + key_bias_j          (-inf where causal forbids j)
//   lse(i)       = log sum_j exp(logits(i, j))
//   P(i, j)      = exp(logits(i, j) - lse(i))
//   out(i)       = sum_j P(i, j) * keep(i, j) / (1 - dropout_p) * v_j
// Query i of sample b is row q_offsets[b] + i of the batch; where q_index is given, its data stand in row
// q_index[q_offsets[b] + i] of q. Keys and values likewise.
// Causal: query i sees key j when j <= i + (keys - queries), so the last query sees every key.
struct AttentionProblem {
  DataType type;
  int64_t batch, heads, head_dim;  // head_dim in [1, 256]
  int64_t total_q, total_k;        // rows of the batch: q_offsets[batch], k_offsets[batch]
  HeadRows q, k, v;
  const int32_t* q_offsets;  // [batch + 1]
  const int32_t* k_offsets;  // [batch + 1]
  const int32_t* q_index;    // [total_q] or null
  const int32_t* k_index;    // [total_k] or null
  const uint8_t* head_mask;  // [batch, heads], 0 = dropped, or null
  const float* key_bias;     // [total_k] or null
  float scale;
  bool causal;
  float dropout_p;  // in [0, 1)
  uint64_t seed;    // of the dropout pattern
};

// Queries without a visible key, and dropped heads: out 0, lse -inf, importance 0.
struct AttentionOutput {
  void* out;          // [total_q, heads, head_dim], the problem's type
  float* lse;         // [total_q, heads]
  float* importance;  // [total_k, heads]: sum over the sample's queries of P (before dropout), or null
};

// Gradients are per row of the batch, also where rows were gathered: the caller scatters them.
struct AttentionGradient {
  const void* grad_out;   // [total_q, heads, head_dim], contiguous, the problem's type
  const float* grad_lse;  // [total_q, heads] or null
  const void* out;        // as forward made it
  const float* lse;       // as forward made it
  DataType grad_type;     // of grad_q, grad_k, grad_v: the problem's type or float32
  void* grad_q;           // [total_q, heads, head_dim]
  void* grad_k;           // [total_k, heads, head_dim]
  void* grad_v;           // [total_k, heads, head_dim]
  float* grad_key_bias;   // [heads, total_k], one row a head (the caller sums them), or null
};

// scratch: 64-byte aligned, parallel.threads * scratch_bytes(...) bytes.
// max_q and max_k are at least the longest sample's queries and keys.
struct TokenGatherAttentionKernels {
  int64_t (*forward_scratch_bytes)(const AttentionProblem&, int64_t max_q, int64_t max_k);
  void (*forward)(const AttentionProblem&, const AttentionOutput&, int64_t max_q, int64_t max_k,
                  void* scratch, const Parallel&);
  int64_t (*backward_scratch_bytes)(const AttentionProblem&, int64_t max_q, int64_t max_k);
  void (*backward)(const AttentionProblem&, const AttentionGradient&, int64_t max_q, int64_t max_k,
                   void* scratch, const Parallel&);
};

}  // namespace vleff

#pragma once
#include <cstdint>

#include "../cpu/token_gather_attention.h"

namespace vleff::cuda {

// Row numbers in memory of the rows of a ragged batch.
struct RowIndex {
  const void* numbers;  // [total], int32 or int64, or null where rows follow each other
  bool is_int64;
};

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

}  // namespace vleff::cuda

// Starts the kernels on a CUDA stream and returns at once: 0, or a CUDA error number.
extern "C" int vleff_token_gather_attention_cuda(const vleff::cuda::AttentionProblem* problem, void* stream);

// A CUDA error number in words.
extern "C" const char* vleff_cuda_error_text(int error);

#pragma once
#include <cstdint>

#include "../data_type.h"

namespace vleff::cuda {

// The function is that of vleff::TrimTokensProblem. Pointers are on the device, all else on the host; wrong
// offsets read and write nothing out of bounds. Tokens from offsets[parts] on belong to no part: their logit
// is -inf, and they do not stay. survivors behind the last one are 0, a row that may be read.
struct TrimTokensProblem {
  DataType type;                       // of values and weights
  int64_t tokens, width, parts, rank;  // at most 2^31 - 1; rank at most 4,096
  const void* values;                  // [tokens, width]
  const int32_t* offsets;              // [parts + 1], where each part begins
  const bool* pinned;                  // [tokens], or null
  const void* local_weight;            // [rank, width]
  const void* global_weight;           // [rank, width]
  const void* hidden_weight;           // [rank, 2 * rank]
  const void* hidden_bias;             // [rank]
  const void* score_weight;            // [rank]
  const void* score_bias;              // one element
  float threshold, eps;
  bool paired;
  const float* other;        // [parts, other_width], or null
  const void* other_weight;  // [rank, other_width], or null
  int64_t other_width;
  const void* temperature;  // one element, where there is an other_weight
  // Scratch memory
  float* statistics;   // [tokens, 2], mean and factor of each token
  float* local;        // [tokens, rank]
  float* from_pooled;  // [parts, rank]
  float* direction;    // [parts, rank], of length 1, where there is an other_weight
  // Results
  float* pooled;          // [parts, width]
  float* logits;          // [tokens]
  int32_t* kept_offsets;  // [parts + 1]
  int32_t* survivors;     // [tokens]
};

}  // namespace vleff::cuda

// Starts the kernels on a CUDA stream and returns at once: 0, or a CUDA error number.
extern "C" int vleff_trim_tokens_cuda(const vleff::cuda::TrimTokensProblem* problem, void* stream);

#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"

namespace vleff {

// Scores tokens and finds those that stay. With x a token's state, normalized to mean 0 and variance 1, g the
// mean of its part's, and c the state of another token for its part:
//
//   local  = local_weight x
//   hidden = gelu(hidden_weight [local, global_weight g] + hidden_bias)
//   logit  = <score_weight, hidden> + score_bias + temperature * cosine(local, other_weight c)
//
// The last term only where there is a c. A token stays if its logit is above the threshold, it is the first
// of its part, or it is pinned.
struct TrimTokensProblem {
  DataType type;  // of values and weights
  int64_t tokens, width, parts, rank;
  const void* values;         // [tokens, width]
  const int32_t* offsets;     // [parts + 1], where each part begins
  const bool* pinned;         // [tokens], or null
  const void* local_weight;   // [rank, width]
  const void* global_weight;  // [rank, width]
  const void* hidden_weight;  // [rank, 2 * rank]
  const void* hidden_bias;    // [rank]
  const void* score_weight;   // [rank]
  float score_bias, threshold, eps;
  bool paired;         // parts are pairs, and c is the first token of a part's partner, 0 of an empty one
  const float* other;  // [parts, other_width], c of each part where parts are not paired; or null
  const void* other_weight;  // [rank, other_width], where there is a c; or null
  int64_t other_width;
  float temperature;
  float* pooled;          // [parts, width], g; 0 of an empty part
  float* logits;          // [tokens]
  int32_t* kept_offsets;  // [parts + 1], where each part begins in the tokens that stay
  int32_t* survivors;     // [tokens], of which kept_offsets[parts] are filled: the rows that stay, in order
};

// scratch: 64-byte aligned, scratch_bytes(problem, parallel.threads) bytes.
struct TrimTokensKernels {
  int64_t (*scratch_bytes)(const TrimTokensProblem&, int64_t threads);
  void (*run)(const TrimTokensProblem&, void* scratch, const Parallel&);
};

}  // namespace vleff

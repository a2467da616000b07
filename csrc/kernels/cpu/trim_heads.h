#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"

namespace vleff {

// Which heads each sample keeps: logits = score_weight gelu(hidden_weight [first, second] + hidden_bias) +
// score_bias. A head stays if its logit is above the threshold, or if it is the first of the highest ones.
struct TrimHeadsProblem {
  DataType type;  // of the weights
  int64_t batch, rank, heads;
  int64_t widths[2];          // of first and second; 0 where there is no second
  const float* inputs[2];     // [batch, widths[i]]
  const void* hidden_weight;  // [rank, widths[0] + widths[1]]
  const void* hidden_bias;    // [rank]
  const void* score_weight;   // [heads, rank]
  const void* score_bias;     // [heads]
  float threshold;
  float* logits;  // [batch, heads]
  bool* kept;     // [batch, heads]
};

// scratch: 64-byte aligned, parallel.threads * scratch_bytes(rank) bytes.
struct TrimHeadsKernels {
  int64_t (*scratch_bytes)(int64_t rank);
  void (*run)(const TrimHeadsProblem&, void* scratch, const Parallel&);
};

}  // namespace vleff

#pragma once
#include "activation.cuh"
#include "term_sums.cuh"
#include "trim_heads_problem.h"

namespace vleff::cuda {

constexpr int trim_heads_warps = 8;

// Bytes of shared memory: the hidden layer and the logits.
inline int trim_heads_shared_bytes(const TrimHeadsProblem& problem) {
  return static_cast<int>((problem.rank + problem.heads) * sizeof(float));
}

// A block takes one sample, a warp one row of a weight after the other. T is the type of the weights.
template <class T>
__global__ void __launch_bounds__(trim_heads_warps* warp_size)
    trim_heads(const __grid_constant__ TrimHeadsProblem problem) {
  extern __shared__ float trim_heads_shared[];
  float* const hidden = trim_heads_shared;
  float* const logits = hidden + problem.rank;
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  const int rank = static_cast<int>(problem.rank), heads = static_cast<int>(problem.heads);
  const int first_width = static_cast<int>(problem.widths[0]),
            second_width = static_cast<int>(problem.widths[1]);
  const int64_t sample = blockIdx.x;
  const float* const first = problem.inputs[0] + sample * first_width;
  const float* const second = problem.inputs[1] + sample * second_width;
  for (int i = warp; i < rank; i += trim_heads_warps) {
    const T* const weight =
        static_cast<const T*>(problem.hidden_weight) + int64_t{i} * (first_width + second_width);
    float sum = sum_terms(first_width, [&](int j) { return first[j] * static_cast<float>(weight[j]); });
    if (second_width) {
      sum += sum_terms(second_width,
                       [&](int j) { return second[j] * static_cast<float>(weight[first_width + j]); });
    }
    const float bias = static_cast<float>(static_cast<const T*>(problem.hidden_bias)[i]);
    if (lane == 0) hidden[i] = gelu(sum + bias);
  }
  __syncthreads();  // the hidden layer is there
  for (int head = warp; head < heads; head += trim_heads_warps) {
    const T* const weight = static_cast<const T*>(problem.score_weight) + int64_t{head} * rank;
    const float sum = sum_terms(rank, [&](int i) { return hidden[i] * static_cast<float>(weight[i]); });
    const float logit = sum + static_cast<float>(static_cast<const T*>(problem.score_bias)[head]);
    if (lane == 0) problem.logits[sample * heads + head] = logits[head] = logit;
  }
  __syncthreads();  // the logits are there
  int best = 0;
  for (int head = 1; head < heads; ++head) best = logits[head] > logits[best] ? head : best;
  for (int head = threadIdx.x; head < heads; head += trim_heads_warps * warp_size) {
    problem.kept[sample * heads + head] = logits[head] > problem.threshold || head == best;
  }
}

}  // namespace vleff::cuda

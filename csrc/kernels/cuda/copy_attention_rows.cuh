#pragma once
#include "copy_attention.cuh"

namespace vleff::cuda {

constexpr int row_threads = 256;

// Maximum and sum over a block, for all its threads, in a fixed order. `of_warps`: shared, a float a warp.
struct BlockSums {
  float* of_warps;

  template <class Join>
  __device__ float join(float value, const Join& of_two) const {
    __syncthreads();  // every thread has read what stood here before
    if (threadIdx.x % warp_size == 0) of_warps[threadIdx.x / warp_size] = value;
    __syncthreads();  // the warps' values are in
    value = of_warps[0];
    for (int warp = 1; warp < row_threads / warp_size; ++warp) value = of_two(value, of_warps[warp]);
    return value;
  }
  // log2 of the sum of 2 ** logit(i), i < count
  template <class Logit>
  __device__ float log_sum(int64_t count, const Logit& logit) const {
    float largest = -INFINITY, sum = 0.0f;
    for (int64_t i = threadIdx.x; i < count; i += row_threads) largest = fmaxf(largest, logit(i));
    largest = join(maximum_of_warp(largest), [](float a, float b) { return fmaxf(a, b); });
    for (int64_t i = threadIdx.x; i < count; i += row_threads) sum += exp2_approximate(logit(i) - largest);
    sum = join(sum_of_warp(sum), [](float a, float b) { return a + b; });
    return largest + log2f(sum);
  }
};

// A block takes a query. Sample number `batch` stands for rows of no sample.
template <class T>
__global__ void __launch_bounds__(row_threads) copy_word_log_probs(const __grid_constant__ CopyOfWords rows) {
  const CopyLogits& problem = rows.logits;
  const int64_t longest = problem.query_rows.longest;
  const int sample = static_cast<int>(blockIdx.x / longest), number = static_cast<int>(blockIdx.x % longest);
  if (sample == problem.batch) {
    const int64_t total = problem.query_rows.total;
    const int64_t end =
        min(max(static_cast<int64_t>(problem.query_rows.offsets[problem.batch]), int64_t{0}), total);
    for (int64_t row = end + number; row < total; row += longest) {
      for (int64_t word = threadIdx.x; word < rows.extended_words; word += row_threads) {
        rows.log_probs[row * rows.extended_words + word] = -INFINITY;
      }
    }
    return;
  }
  const SampleRows queries = rows_of_sample(problem.query_rows, sample);
  if (number >= queries.count) return;
  const int64_t query = queries.first + number;
  __shared__ float of_warps[row_threads / warp_size];
  const BlockSums sums{of_warps};
  const CopyRow memories[copy_sources] = {CopyRow(problem.memories[0], sample, query),
                                          CopyRow(problem.memories[1], sample, query)};
  const LogGate gate(static_cast<const T*>(problem.gate_logits) + query * copy_parts, memories);
  float* const log_probs = rows.log_probs + query * rows.extended_words;

  const T* const logits = static_cast<const T*>(rows.vocabulary_logits) + query * rows.words;
  const auto logit = [&](int64_t word) { return static_cast<float>(logits[word]); };
  const float lse = sums.log_sum(rows.words, [&](int64_t word) { return logit(word) * log2_of_e; }) * ln_of_2;
  for (int64_t word = threadIdx.x; word < rows.extended_words; word += row_threads) {
    log_probs[word] = word < rows.words ? logit(word) + (gate.of[0] - lse) : -INFINITY;
  }
#pragma unroll
  for (int source = 0; source < copy_sources; ++source) {
    const CopyRow& memory = memories[source];
    if (memory.count == 0) continue;
    const float memory_lse =
        sums.log_sum(memory.count, [&](int64_t position) { return memory.logits[position]; });
    // log_sum ends behind barriers, so that the earlier log_probs are in. The first of the positions with one
    // word adds them all, in order.
    for (int position = threadIdx.x; position < memory.count; position += row_threads) {
      const int word = memory.ids[position];
      if (word < 0 || word >= rows.extended_words) continue;
      bool is_first = true;
      for (int i = 0; i < position && is_first; ++i) is_first = memory.ids[i] != word;
      if (!is_first) continue;
      float log_prob = log_probs[word];
      for (int i = position; i < memory.count; ++i) {
        if (memory.ids[i] != word) continue;
        log_prob = log_add(log_prob, gate.of[source + 1] + (memory.logits[i] - memory_lse) * ln_of_2);
      }
      log_probs[word] = log_prob;
    }
  }
}

}  // namespace vleff::cuda

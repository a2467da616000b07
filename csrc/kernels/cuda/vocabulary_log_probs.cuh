#pragma once
#include "ragged_products.cuh"
#include "vocabulary_log_probs_problem.h"
#include "warp_sums.cuh"
#include "words.cuh"

namespace vleff::cuda {

// A tile of base-two logits: 64 rows by 64 words.
template <class Tile>
struct LogitTile {
  int first_row, first_word;
  SumFragment logits[Tile::streamed_rows / 8];

  // first_word: of the block's part of the vocabulary, which has word_tiles tiles
  __device__ LogitTile(const VocabularyLogProbs& problem, int64_t part_first_word, int64_t word_tiles,
                       unsigned char* shared, const Lane& lane)
      : first_row(static_cast<int>(blockIdx.x / word_tiles) * Tile::stationary_rows),
        first_word(static_cast<int>(part_first_word + blockIdx.x % word_tiles * Tile::streamed_rows)),
        logits{} {
    using T = typename Tile::Element;
    const RaggedSide rows{nullptr, {nullptr, false}, problem.rows, problem.rows, problem.rows};
    const RaggedSide words{nullptr, {nullptr, false}, problem.words, problem.words, problem.words};
    const DenseRows hidden{problem.hidden, rows, rows_of_sample(rows, 0)};
    const DenseRows weight{problem.weight, words, rows_of_sample(words, 0)};
    multiply_over_width<Tile>(logits, shared, hidden, first_row, weight, first_word, problem.width, lane);
#pragma unroll
    for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int word = first_word + 8 * j + 2 * lane.thread + e % 2;
        if (problem.bias && word < problem.words) {
          logits[j][e] += static_cast<float>(static_cast<const T*>(problem.bias)[word]);
        }
        logits[j][e] = word < problem.words ? logits[j][e] * log2_of_e : -INFINITY;
      }
    }
  }
};

// Statistics of each tile of words, and the targets' logits.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    vocabulary_statistics(const __grid_constant__ VocabularyForward forward) {
  static_assert(Tile::streamed_rows == vocabulary_tile_words);
  extern __shared__ __align__(128) unsigned char shared[];
  const VocabularyLogProbs& problem = forward.problem;
  const Lane lane;
  const int64_t word_tiles = (problem.words + Tile::streamed_rows - 1) / Tile::streamed_rows;
  const LogitTile<Tile> tile(problem, 0, word_tiles, shared, lane);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = tile.first_row + lane.warp * 16 + lane.group + 8 * half;
    const int target = row < problem.rows ? word_of(problem.targets, row, problem.words) : -1;
    float largest = -INFINITY, sum = 0.0f;
    const auto for_each_word = [&](const auto& act) {
#pragma unroll
      for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          act(tile.first_word + 8 * j + 2 * lane.thread + e, tile.logits[j][2 * half + e]);
        }
      }
    };
    for_each_word([&](int word, float logit) {
      largest = fmaxf(largest, logit);
      if (word == target) forward.target_logits[row] = logit;
    });
    largest = maximum_of_row(largest);
    for_each_word([&](int, float logit) { sum += exp2_approximate(logit - largest); });
    sum = sum_of_row(sum);
    if (lane.thread == 0 && row < problem.rows) {
      float* const statistics = forward.partial + (row * word_tiles + blockIdx.x % word_tiles) * 2;
      statistics[0] = largest;
      statistics[1] = sum;
    }
  }
}

// Joins the tiles' statistics in a fixed order. A warp takes a row.
__global__ void __launch_bounds__(warps_of_rows* warp_size)
    vocabulary_log_probs(const __grid_constant__ VocabularyForward forward) {
  const VocabularyLogProbs& problem = forward.problem;
  const Lane lane;
  const int64_t row = int64_t{blockIdx.x} * warps_of_rows + lane.warp;
  if (row >= problem.rows) return;
  const int64_t word_tiles = (problem.words + vocabulary_tile_words - 1) / vocabulary_tile_words;
  const float* const partial = forward.partial + row * word_tiles * 2;
  float largest = -INFINITY, sum = 0.0f;
  for (int64_t tile = lane.number; tile < word_tiles; tile += warp_size) {
    largest = fmaxf(largest, partial[2 * tile]);
  }
  largest = maximum_of_warp(largest);
  for (int64_t tile = lane.number; tile < word_tiles; tile += warp_size) {
    sum += partial[2 * tile + 1] * exp2_approximate(partial[2 * tile] - largest);
  }
  sum = sum_of_warp(sum);
  if (lane.number != 0) return;
  const bool known = word_of(problem.targets, row, problem.words) >= 0;
  forward.log_probs[row] = known ? (forward.target_logits[row] - largest - log2f(sum)) * ln_of_2 : -INFINITY;
  problem.statistics[2 * row] = largest;
  problem.statistics[2 * row + 1] = sum;
}

// One chunk of words of the backward pass.
struct VocabularyChunk {
  VocabularyBackward backward;
  int64_t first_word, words;
};

// weight_unit * (1 at the target, else 0, less the probability) of a chunk's words; 0 for rows without a
// target.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    vocabulary_logit_gradients(const __grid_constant__ VocabularyChunk chunk) {
  using T = typename Tile::Element;
  extern __shared__ __align__(128) unsigned char shared[];
  const VocabularyLogProbs& problem = chunk.backward.problem;
  const Lane lane;
  const int64_t word_tiles = (chunk.words + Tile::streamed_rows - 1) / Tile::streamed_rows;
  const LogitTile<Tile> tile(problem, chunk.first_word, word_tiles, shared, lane);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = tile.first_row + lane.warp * 16 + lane.group + 8 * half;
    if (row >= problem.rows) continue;
    const int target = word_of(problem.targets, row, problem.words);
    const float largest = problem.statistics[2 * row], factor = 1.0f / problem.statistics[2 * row + 1];
    if (lane.thread == 0 && blockIdx.x % word_tiles == 0) {
      chunk.backward.factors[row] = target >= 0 ? chunk.backward.grad_log_probs[row] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
      const int column = 8 * j + 2 * lane.thread, word = tile.first_word + column;
      float values[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float probability = exp2_approximate(tile.logits[j][2 * half + e] - largest) * factor;
        values[e] = target >= 0 ? ((word + e == target ? 1.0f : 0.0f) - probability) * weight_unit : 0.0f;
      }
      const int64_t place = row * chunk.backward.chunk_words + (tile.first_word - chunk.first_word) + column;
      store_pair(static_cast<T*>(chunk.backward.logit_gradients), place, values, 2);
    }
  }
}

constexpr int bias_threads = 128;

// A thread takes a word.
template <class T>
__global__ void __launch_bounds__(bias_threads)
    vocabulary_grad_bias(const __grid_constant__ VocabularyChunk chunk) {
  const VocabularyBackward& backward = chunk.backward;
  const int64_t word = int64_t{blockIdx.x} * bias_threads + threadIdx.x;
  if (word >= chunk.words) return;
  const T* const gradients = static_cast<const T*>(backward.logit_gradients) + word;
  float sum = 0.0f;
  for (int64_t row = 0; row < backward.problem.rows; ++row) {
    sum += static_cast<float>(gradients[row * backward.chunk_words]) / weight_unit * backward.factors[row];
  }
  static_cast<T*>(backward.grad_bias)[chunk.first_word + word] = static_cast<T>(sum);
}

}  // namespace vleff::cuda

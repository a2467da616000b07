#pragma once
#include "product_tiles.cuh"
#include "term_sums.cuh"
#include "trim_tokens_problem.h"

// Tokens are normalized where they are read, from a mean and a factor that the first kernel finds.
namespace vleff::cuda {

constexpr int trim_warps = 4, trim_threads = trim_warps * warp_size;

struct PartRows {
  int first, count;

  __device__ PartRows(const TrimTokensProblem& problem, int64_t part) {
    const int tokens = static_cast<int>(problem.tokens);
    first = min(max(problem.offsets[part], 0), tokens);
    count = min(max(problem.offsets[part + 1], first), tokens) - first;
  }
};

template <class T>
struct NormalizedTokens {
  const T* values;
  const float2* statistics;
  int width;

  __device__ explicit NormalizedTokens(const TrimTokensProblem& problem)
      : values(static_cast<const T*>(problem.values)),
        statistics(reinterpret_cast<const float2*>(problem.statistics)),
        width(static_cast<int>(problem.width)) {}
  __device__ float at(int token, int column) const {
    const float2 of_token = statistics[token];
    return (static_cast<float>(values[int64_t{token} * width + column]) - of_token.x) * of_token.y;
  }
};

// Mean and 1 / sqrt(variance + eps); a warp takes one token.
template <class T>
__global__ void __launch_bounds__(trim_threads)
    trim_tokens_statistics(const __grid_constant__ TrimTokensProblem problem) {
  const int64_t token = int64_t{blockIdx.x} * trim_warps + threadIdx.x / warp_size;
  if (token >= problem.tokens) return;
  const int width = static_cast<int>(problem.width);
  const float share = 1.0f / static_cast<float>(width);
  const T* const values = static_cast<const T*>(problem.values) + token * width;
  const float mean = sum_terms(width, [&](int i) { return static_cast<float>(values[i]); }) * share;
  const float variance = sum_terms(width,
                                   [&](int i) {
                                     const float deviation = static_cast<float>(values[i]) - mean;
                                     return deviation * deviation;
                                   }) *
                         share;
  if (threadIdx.x % warp_size == 0) {
    reinterpret_cast<float2*>(problem.statistics)[token] = {mean, 1.0f / sqrtf(variance + problem.eps)};
  }
}

// The mean of a part's normalized tokens; a thread takes one column.
template <class T>
__global__ void __launch_bounds__(trim_threads)
    trim_tokens_pool(const __grid_constant__ TrimTokensProblem problem) {
  constexpr int summed_together = 32;
  const int groups = tiles_in(problem.width, trim_threads);
  const int64_t part = blockIdx.x / groups;
  const int column = static_cast<int>(blockIdx.x % groups) * trim_threads + static_cast<int>(threadIdx.x);
  if (column >= problem.width) return;
  const PartRows rows(problem, part);
  const NormalizedTokens<T> normalized(problem);
  float sum = 0.0f;
  for (int first = 0; first < rows.count; first += summed_together) {
    float few = 0.0f;
    for (int row = first; row < min(rows.count, first + summed_together); ++row) {
      few += normalized.at(rows.first + row, column);
    }
    sum += few;
  }
  problem.pooled[part * problem.width + column] = sum * (1.0f / static_cast<float>(max(rows.count, 1)));
}

// Of a vector's squares, but not 0.
__device__ __forceinline__ float length_of(float squares) {
  return fmaxf(sqrtf(squares), 1e-12f);
}

// What a part's mean and the other token add to its tokens' logits; a block takes one part, a warp one row of
// a weight after the other.
template <class T>
__global__ void __launch_bounds__(trim_threads)
    trim_tokens_parts(const __grid_constant__ TrimTokensProblem problem) {
  extern __shared__ float trim_parts_shared[];
  const int rank = static_cast<int>(problem.rank), width = static_cast<int>(problem.width);
  const int other_width = static_cast<int>(problem.other_width);
  float* const low = trim_parts_shared;
  float* const direction = low + rank;
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  const int64_t part = blockIdx.x;
  const float* const pooled = problem.pooled + part * width;
  for (int i = warp; i < rank; i += trim_warps) {
    const T* const weight = static_cast<const T*>(problem.global_weight) + int64_t{i} * width;
    const float sum = sum_terms(width, [&](int j) { return pooled[j] * static_cast<float>(weight[j]); });
    if (lane == 0) low[i] = sum;
  }
  if (problem.other_weight) {
    const NormalizedTokens<T> normalized(problem);
    const bool has_partner = problem.paired && (part ^ 1) < problem.parts;
    const PartRows partner(problem, has_partner ? part ^ 1 : part);
    const float* const other = problem.paired ? nullptr : problem.other + part * other_width;
    const auto state = [&](int column) {
      if (other) return other[column];
      return has_partner && partner.count > 0 ? normalized.at(partner.first, column) : 0.0f;
    };
    for (int i = warp; i < rank; i += trim_warps) {
      const T* const weight = static_cast<const T*>(problem.other_weight) + int64_t{i} * other_width;
      const float sum =
          sum_terms(other_width, [&](int j) { return state(j) * static_cast<float>(weight[j]); });
      if (lane == 0) direction[i] = sum;
    }
  }
  __syncthreads();  // both vectors are there
  for (int i = warp; i < rank; i += trim_warps) {
    const T* const weight = static_cast<const T*>(problem.hidden_weight) + int64_t{i} * 2 * rank + rank;
    const float sum = sum_terms(rank, [&](int j) { return low[j] * static_cast<float>(weight[j]); });
    const float bias = static_cast<float>(static_cast<const T*>(problem.hidden_bias)[i]);
    if (lane == 0) problem.from_pooled[part * rank + i] = sum + bias;
  }
  if (!problem.other_weight) return;
  const float length = length_of(sum_terms(rank, [&](int j) { return direction[j] * direction[j]; }));
  for (int i = threadIdx.x; i < rank; i += trim_threads) {
    problem.direction[part * rank + i] = direction[i] / length;
  }
}

// local = local_weight x; a block takes a tile of tokens and of the rank.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 2)
    trim_tokens_project(const __grid_constant__ TrimTokensProblem problem) {
  using T = typename Tile::Element;
  using Left = LeftTile<Tile, false>;
  using Right = RightTile<Tile, false>;
  const int tokens = static_cast<int>(problem.tokens), width = static_cast<int>(problem.width),
            rank = static_cast<int>(problem.rank);
  const int token_tiles = tiles_in(tokens, Tile::rows);
  const int first_token = static_cast<int>(blockIdx.x % token_tiles) * Tile::rows;
  const int first_feature = static_cast<int>(blockIdx.x / token_tiles) * Tile::columns;
  extern __shared__ __align__(128) unsigned char shared[];
  const Lane lane;
  const NormalizedTokens<T> normalized(problem);
  const T* const weight = static_cast<const T*>(problem.local_weight);

  struct Depth {
    int first;
    bool present;
  };
  TileSums<Tile> sums = {};
  multiply_along<Tile, Left, Right>(
      Depth{0, true}, shared, lane,
      [&](const Depth& depth) { return Depth{depth.first + Tile::depth, depth.first + Tile::depth < width}; },
      [&](const Depth& depth, unsigned char* left, unsigned char* right) {
        fill_operand<Left, Tile::threads>(left,
                                          [&](int row, int element, float (&values)[Tile::chunk_elements]) {
                                            if (first_token + row >= tokens) return;
#pragma unroll
                                            for (int e = 0; e < Tile::chunk_elements; ++e) {
                                              const int column = depth.first + element + e;
                                              if (column < width)
                                                values[e] = normalized.at(first_token + row, column);
                                            }
                                          });
        load_operand<Right, Tile::threads>(right, [&](int line, int element) -> LinePiece<T> {
          const int feature = first_feature + line, column = depth.first + element;
          if (feature >= rank || column >= width) return {weight, 0};
          return {weight + int64_t{feature} * width + column, width - column};
        });
      },
      [&](const TileSums<Tile>& product, const Depth&, unsigned char*) { add_sums<Tile>(sums, product); });
  store_sums<Tile>(sums, shared, lane, [&](int row, int column, float (&values)[Tile::chunk_elements]) {
    if (first_token + row >= tokens) return;
    float* const target = problem.local + int64_t{first_token + row} * rank + first_feature + column;
#pragma unroll
    for (int e = 0; e < Tile::chunk_elements; ++e) {
      if (first_feature + column + e < rank) target[e] = values[e];
    }
  });
}

}  // namespace vleff::cuda

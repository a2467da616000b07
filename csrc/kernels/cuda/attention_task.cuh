#pragma once
#include <cmath>

#include "ragged_tiles.cuh"

// What the kernels of token_gather_attention share: the work of a block, and the rows outside of it.
// Logits count in powers of two: exp(x) = 2 ** (x * log2(e)).
namespace vleff::cuda {

constexpr float log2_of_e = 1.44269504088896341f;
constexpr float ln_of_2 = 0.69314718055994531f;

// Tiles a sample and head; at least one, as rows that belong to no sample need a block too.
__host__ __device__ inline int tiles_of(const RaggedSide& side, int rows) {
  const int64_t longest = side.longest < side.total ? side.longest : side.total;
  return longest > rows ? static_cast<int>((longest + rows - 1) / rows) : 1;
}

// The work of a block. Sample number `batch` stands for the rows that belong to no sample.
struct BlockTask {
  int tile, head, sample;

  __device__ BlockTask(const AttentionProblem& problem, int tiles) {
    const unsigned heads = static_cast<unsigned>(problem.heads), pair = blockIdx.x / tiles;
    tile = static_cast<int>(blockIdx.x % tiles);
    head = static_cast<int>(pair % heads);
    sample = static_cast<int>(pair / heads);
  }
  __device__ bool dropped(const AttentionProblem& problem) const {
    return problem.head_mask && !problem.head_mask[sample * problem.heads + head];
  }
};

// Keys that a query sees: the last query sees every key.
__device__ __forceinline__ int visible_keys(bool causal, int query, int queries, int keys) {
  return causal ? max(0, min(keys, query + 1 + keys - queries)) : keys;
}

// Rows from the end of the last sample on, shared among the blocks of sample number `batch`.
template <class Tile, class Fill>
__device__ void fill_unowned_rows(const RaggedSide& side, int64_t batch, int tile, int tiles,
                                  const Fill& fill) {
  const int total = static_cast<int>(side.total);
  const int64_t end = min(max(side.offsets[batch], 0), total);
  for (int64_t first = end + int64_t{tile} * Tile::stationary_rows; first < total;
       first += int64_t{tiles} * Tile::stationary_rows) {
    fill(static_cast<int>(first), static_cast<int>(min(total - first, int64_t{Tile::stationary_rows})));
  }
}

}  // namespace vleff::cuda

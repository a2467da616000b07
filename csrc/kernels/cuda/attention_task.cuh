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

  template <class Problem>
  __device__ BlockTask(const Problem& problem, int tiles) {
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

// The keep pattern of dropout for one query: a word for each key; kept where word >= threshold.
struct DropoutRow {
  uint32_t first, second;

  DropoutRow() = default;
  __device__ DropoutRow(uint64_t seed, int sample, int head, int query) {
    const uint64_t of_sample = mixed(seed + 0x9E3779B97F4A7C15u * (static_cast<uint64_t>(sample) + 1));
    const uint64_t of_row =
        mixed(of_sample + (static_cast<uint64_t>(head) << 32 | static_cast<uint32_t>(query)));
    first = static_cast<uint32_t>(of_row);
    second = static_cast<uint32_t>(of_row >> 32);
  }
  __device__ uint32_t word(int key) const {
    uint32_t x = first + static_cast<uint32_t>(key) * 0x9E3779B9u;
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= second;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    return x ^ (x >> 16);
  }
  static __device__ uint32_t threshold(float dropout_p) {
    const auto rounded = static_cast<uint64_t>(static_cast<double>(dropout_p) * 4294967296.0 + 0.5);
    return rounded < 0xFFFFFFFFu ? static_cast<uint32_t>(rounded) : 0xFFFFFFFFu;
  }

 private:
  static __device__ uint64_t mixed(uint64_t z) {
    z ^= z >> 30;
    z *= 0xBF58476D1CE4E5B9u;
    z ^= z >> 27;
    z *= 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
};

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

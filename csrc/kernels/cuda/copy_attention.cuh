#pragma once
#include "copy_attention_problem.h"
#include "ragged_products.cuh"
#include "warp_sums.cuh"
#include "words.cuh"

// What forward, backward and rows of copy_attention share: the logits, and one query's view of the memories.
namespace vleff::cuda {

constexpr int copy_parts = 1 + copy_sources;  // generate, then copy from each memory

// Tiles of logits of a sample, of all memories.
template <class Tile>
__host__ __device__ int64_t logit_tiles(const CopyLogits& problem) {
  int64_t tiles = 0;
  for (const CopyMemory& memory : problem.memories) tiles += square_tiles(memory.rows, Tile::streamed_rows);
  return tiles * square_tiles(problem.query_rows, Tile::stationary_rows);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1) copy_logits(const __grid_constant__ CopyLogits problem) {
  const int64_t query_tiles = square_tiles(problem.query_rows, Tile::stationary_rows);
  const int64_t tiles = logit_tiles<Tile>(problem);
  const int sample = static_cast<int>(blockIdx.x / tiles);
  const int first_query = static_cast<int>(blockIdx.x % query_tiles) * Tile::stationary_rows;
  int64_t tile = blockIdx.x % tiles / query_tiles;
  const int64_t first_tiles = square_tiles(problem.memories[0].rows, Tile::streamed_rows);
  const bool is_second = tile >= first_tiles;
  if (is_second) tile -= first_tiles;
  const CopyMemory& memory = is_second ? problem.memories[1] : problem.memories[0];
  const int first_position = static_cast<int>(tile) * Tile::streamed_rows;
  const DenseRows queries{problem.queries, problem.query_rows, rows_of_sample(problem.query_rows, sample)};
  const DenseRows keys{memory.keys, memory.rows, rows_of_sample(memory.rows, sample)};
  if (first_query >= queries.sample.count || first_position >= keys.sample.count) return;

  extern __shared__ __align__(128) unsigned char shared[];
  const Lane lane;
  SumFragment sums[Tile::streamed_rows / 8] = {};
  multiply_over_width<Tile>(sums, shared, queries, first_query, keys, first_position, problem.width, lane);
  const float scale = problem.scale * log2_of_e;
#pragma unroll
  for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int query = first_query + lane.warp * 16 + lane.group + e / 2 * 8;
      const int position = first_position + 8 * j + 2 * lane.thread + e % 2;
      if (query < queries.sample.count && position < keys.sample.count) {
        memory.logits[(queries.sample.first + query) * memory.stride + position] = sums[j][e] * scale;
      }
    }
  }
}

// The query of a warp, of blocks whose warps take one each.
struct QueryOfWarp {
  int sample;
  int64_t query;  // in the batch
  bool exists;

  __device__ QueryOfWarp(const CopyLogits& problem, const Lane& lane) {
    const int64_t blocks = square_tiles(problem.query_rows, warps_of_rows);
    sample = static_cast<int>(blockIdx.x / blocks);
    const int number = static_cast<int>(blockIdx.x % blocks) * warps_of_rows + lane.warp;
    const SampleRows rows = rows_of_sample(problem.query_rows, sample);
    exists = number < rows.count;
    query = rows.first + number;
  }
};

// One sample's part of a memory, as one query sees it.
struct CopyRow {
  const float* logits;
  const int32_t* ids;
  int count;

  __device__ CopyRow(const CopyMemory& memory, int sample, int64_t query) {
    const SampleRows rows = rows_of_sample(memory.rows, sample);
    logits = memory.logits + query * memory.stride;
    ids = memory.ids + rows.first;
    count = rows.count;
  }
};

__device__ __forceinline__ float natural_exp(float x) {
  return exp2_approximate(x * log2_of_e);
}

// log(1 + x), x in [0, 1]: the rounding of 1 + x is made good by the quotient.
__device__ __forceinline__ float log_of_one_and(float x) {
  const float sum = 1.0f + x;
  return sum == 1.0f ? x : logf(sum) * (x / (sum - 1.0f));
}

// log(exp(a) + exp(b)); NaN stays NaN
__device__ __forceinline__ float log_add(float a, float b) {
  const float larger = a > b ? a : b, smaller = a > b ? b : a;
  return smaller == -INFINITY ? larger : larger + log_of_one_and(natural_exp(smaller - larger));
}

// Logarithms of the gate; -inf where it is closed.
struct LogGate {
  float of[copy_parts];

  template <class T>
  __device__ LogGate(const T* logits, const CopyRow (&rows)[copy_sources]) {
    float largest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int part = 0; part < copy_parts; ++part) {
      const bool open = part == 0 || rows[part == 0 ? 0 : part - 1].count > 0;
      of[part] = open ? static_cast<float>(logits[part]) : -INFINITY;
      largest = fmaxf(largest, of[part]);
    }
#pragma unroll
    for (int part = 0; part < copy_parts; ++part) sum += natural_exp(of[part] - largest);
    const float lse = largest + logf(sum);
#pragma unroll
    for (int part = 0; part < copy_parts; ++part) of[part] -= lse;
  }
};

// The logarithms of the ways in which a target comes about, and of their sum.
struct TargetParts {
  float of[copy_parts];

  __device__ TargetParts(const LogGate& gate, float generate,
                         const CopyStatistics (&statistics)[copy_sources]) {
    of[0] = gate.of[0] + generate;
#pragma unroll
    for (int source = 0; source < copy_sources; ++source) {
      const SoftmaxStatistics &all = statistics[source].all, &target = statistics[source].target;
      const float copied = (target.maximum - all.maximum) * ln_of_2 + logf(target.sum / all.sum);
      of[source + 1] = target.sum > 0.0f ? gate.of[source + 1] + copied : -INFINITY;
    }
  }
  __device__ float log_sum() const { return log_add(log_add(of[0], of[1]), of[2]); }
};

}  // namespace vleff::cuda

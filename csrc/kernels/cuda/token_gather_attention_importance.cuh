#pragma once
#include "attention_task.cuh"

namespace vleff::cuda {

template <class Tile>
constexpr int importance_shared_bytes =
    Tile::stationary_bytes + 2 * Tile::streamed_bytes + 2 * Tile::streamed_rows * 4;

// The column sums of P, once lse is known: a block takes the keys of one tile and walks over the queries in
// order, so that no atomic addition is needed and the same bits come out at every run.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    token_gather_attention_importance(const __grid_constant__ AttentionProblem problem) {
  using T = typename Tile::Element;
  const int tiles = tiles_of(problem.keys, Tile::stationary_rows);
  const BlockTask task(problem, tiles);
  const auto store = [&](int row, float value) {
    problem.importance[row * problem.heads + task.head] = value;
  };
  const auto fill = [&](int first, int rows) {
    for (int row = threadIdx.x; row < rows; row += Tile::threads) store(first + row, 0.0f);
  };
  if (task.sample == problem.batch) {
    fill_unowned_rows<Tile>(problem.keys, problem.batch, task.tile, tiles, fill);
    return;
  }
  const SampleRows queries(problem.queries, task.sample), keys(problem.keys, task.sample);
  const int first_key = task.tile * Tile::stationary_rows;
  if (first_key >= keys.count) return;
  const int rows = min(keys.count - first_key, Tile::stationary_rows);
  // Causal: key j is seen by the queries from j - (keys - queries) on.
  const int hidden_queries = problem.causal ? max(0, first_key - (keys.count - queries.count)) : 0;
  if (hidden_queries >= queries.count || task.dropped(problem)) {
    fill(keys.first + first_key, rows);
    return;
  }

  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* const key_rows = shared;
  unsigned char* const query_rows = key_rows + Tile::stationary_bytes;
  float* const lse_rows = reinterpret_cast<float*>(query_rows + 2 * Tile::streamed_bytes);
  const int head_dim = static_cast<int>(problem.head_dim), heads = static_cast<int>(problem.heads);
  const HeadOperand<T> q(problem.q, task.head), k(problem.k, task.head);
  const float* const lse = problem.lse + queries.first * problem.heads + task.head;
  const auto load_queries = [&](int first_query, int buffer) {
    load_rows<Tile, Tile::streamed_rows>(query_rows + buffer * Tile::streamed_bytes, q, problem.queries,
                                         queries, first_query, head_dim);
    load_numbers<Tile>(lse_rows + buffer * Tile::streamed_rows, lse, first_query, queries.count, heads);
  };
  const int start = hidden_queries / Tile::streamed_rows * Tile::streamed_rows;
  load_rows<Tile, Tile::stationary_rows>(key_rows, k, problem.keys, keys, first_key, head_dim);
  load_queries(start, 0);

  const Lane lane;
  const float scale = problem.scale * log2_of_e;
  float bias[2] = {0.0f, 0.0f}, sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane.warp * 16 + lane.group + 8 * half;
    if (problem.key_bias && row < rows)
      bias[half] = problem.key_bias[keys.first + first_key + row] * log2_of_e;
  }
  for (int first_query = start, buffer = 0; first_query < queries.count;
       first_query += Tile::streamed_rows, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tile is in, and every warp has left the other buffer
    if (first_query + Tile::streamed_rows < queries.count) {
      load_queries(first_query + Tile::streamed_rows, buffer ^ 1);
    }
    SumFragment logits[Tile::streamed_rows / 8] = {};
    multiply_rows<Tile>(logits, key_rows, query_rows + buffer * Tile::streamed_bytes, lane);
#pragma unroll
    for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 8 * j + 2 * lane.thread + e % 2, query = first_query + column;
        const int key = first_key + lane.warp * 16 + lane.group + e / 2 * 8;
        const float query_lse = lse_rows[buffer * Tile::streamed_rows + column];
        const float weight = exp2_approximate(logits[j][e] * scale + bias[e / 2] - query_lse * log2_of_e);
        const bool counts = query < queries.count && query_lse != -INFINITY &&
                            key < visible_keys(problem.causal, query, queries.count, keys.count);
        sum[e / 2] += counts ? weight : 0.0f;
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = sum_of_row(sum[half]);
    const int row = lane.warp * 16 + lane.group + 8 * half;
    if (lane.thread == 0 && row < rows) store(keys.first + first_key + row, total);
  }
}

}  // namespace vleff::cuda

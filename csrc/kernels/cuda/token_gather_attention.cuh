#pragma once
#include "attention_task.cuh"

// A block takes the queries of one tile of one (sample, head) and walks over its keys with a running softmax.
namespace vleff::cuda {

template <class Tile>
constexpr int forward_shared_bytes =
    Tile::stationary_bytes + 4 * Tile::streamed_bytes + 2 * Tile::streamed_rows * 4;

// out 0 and lse -inf for rows [first, first + rows) of the batch at one head.
template <class Tile>
__device__ void fill_output(const AttentionProblem& problem, int first, int rows, int head) {
  using T = typename Tile::Element;
  const HeadResult<T> out{static_cast<T*>(problem.out), problem.heads, head,
                          static_cast<int>(problem.head_dim)};
  zero_head_rows<Tile>(out, first, rows);
  for (int row = threadIdx.x; row < rows; row += Tile::threads) {
    problem.lse[(first + row) * problem.heads + head] = -INFINITY;
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    token_gather_attention_forward(const __grid_constant__ AttentionProblem problem) {
  using T = typename Tile::Element;
  const int tiles = tiles_of(problem.queries, Tile::stationary_rows);
  const BlockTask task(problem, tiles);
  if (task.sample == problem.batch) {
    fill_unowned_rows<Tile>(problem.queries, problem.batch, task.tile, tiles,
                            [&](int first, int rows) { fill_output<Tile>(problem, first, rows, task.head); });
    return;
  }
  const SampleRows queries(problem.queries, task.sample), keys(problem.keys, task.sample);
  const int first_query = task.tile * Tile::stationary_rows;
  if (first_query >= queries.count) return;
  const int rows = min(queries.count - first_query, Tile::stationary_rows);
  const int visible = visible_keys(problem.causal, first_query + rows - 1, queries.count, keys.count);
  if (visible == 0 || task.dropped(problem)) {
    fill_output<Tile>(problem, queries.first + first_query, rows, task.head);
    return;
  }

  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* const query_rows = shared;
  unsigned char* const key_rows = query_rows + Tile::stationary_bytes;
  unsigned char* const value_rows = key_rows + 2 * Tile::streamed_bytes;
  float* const biases = reinterpret_cast<float*>(value_rows + 2 * Tile::streamed_bytes);
  const int head_dim = static_cast<int>(problem.head_dim);
  const HeadOperand<T> q(problem.q, task.head), k(problem.k, task.head), v(problem.v, task.head);
  const auto load_keys = [&](int first_key, int buffer) {
    load_rows<Tile, Tile::streamed_rows>(key_rows + buffer * Tile::streamed_bytes, k, problem.keys, keys,
                                         first_key, head_dim);
    load_rows<Tile, Tile::streamed_rows>(value_rows + buffer * Tile::streamed_bytes, v, problem.keys, keys,
                                         first_key, head_dim);
    if (problem.key_bias) {
      load_numbers<Tile>(biases + buffer * Tile::streamed_rows, problem.key_bias + keys.first, first_key,
                         keys.count, 1);
    }
  };
  load_rows<Tile, Tile::stationary_rows>(query_rows, q, problem.queries, queries, first_query, head_dim);
  load_keys(0, 0);

  const Lane lane;
  const float scale = problem.scale * log2_of_e;
  const bool with_dropout = problem.dropout_p > 0;
  const uint32_t threshold = DropoutRow::threshold(problem.dropout_p);
  int limit[2];  // keys that the lane's two queries see
  DropoutRow dropout[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = first_query + lane.warp * 16 + lane.group + 8 * half;
    limit[half] = visible_keys(problem.causal, query, queries.count, keys.count);
    if (with_dropout) dropout[half] = DropoutRow(*problem.seed, task.sample, task.head, query);
  }
  const int visible_to_all = visible_keys(problem.causal, first_query, queries.count, keys.count);

  SumFragment out[Tile::width / 8] = {};
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  for (int first_key = 0, buffer = 0; first_key < visible; first_key += Tile::streamed_rows, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tile is in, and every warp has left the other buffer
    if (first_key + Tile::streamed_rows < visible) load_keys(first_key + Tile::streamed_rows, buffer ^ 1);

    SumFragment logits[Tile::streamed_rows / 8] = {};
    multiply_rows<Tile>(logits, query_rows, key_rows + buffer * Tile::streamed_bytes, lane);
    const float* const bias = biases + buffer * Tile::streamed_rows;
    const bool partly_visible = first_key + Tile::streamed_rows > visible_to_all;
#pragma unroll
    for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 8 * j + 2 * lane.thread + e % 2;
        float logit = logits[j][e] * scale;
        if (problem.key_bias) logit += bias[column] * log2_of_e;
        if (partly_visible && first_key + column >= limit[e / 2]) logit = -INFINITY;
        logits[j][e] = logit;
      }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = maximum[half];
#pragma unroll
      for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
        largest = fmaxf(largest, fmaxf(logits[j][2 * half], logits[j][2 * half + 1]));
      }
      largest = maximum_of_row(largest);
      const float reference = largest == -INFINITY ? 0.0f : largest;
      const float shrink = exp2_approximate(maximum[half] - reference);
      maximum[half] = largest;
      float tile_sum = 0.0f;
#pragma unroll
      for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const float weight = exp2_approximate(logits[j][e] - reference);
          tile_sum += weight;
          logits[j][e] = weight;
          if (with_dropout && dropout[half].word(first_key + 8 * j + 2 * lane.thread + e % 2) < threshold) {
            logits[j][e] = 0.0f;
          }
        }
      }
      sum[half] = sum[half] * shrink + tile_sum;
#pragma unroll
      for (int j = 0; j < Tile::width / 8; ++j) {
        out[j][2 * half] *= shrink;
        out[j][2 * half + 1] *= shrink;
      }
    }
    multiply_weights<Tile>(out, logits, value_rows + buffer * Tile::streamed_bytes, lane);
  }

  const float kept_scale = 1.0f / (1.0f - problem.dropout_p);
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = sum_of_row(sum[half]);
    // Only 0 is special: NaN must stay NaN.
    factor[half] = total == 0.0f ? 0.0f : kept_scale / total;
    const int row = lane.warp * 16 + lane.group + 8 * half;
    if (lane.thread == 0 && row < rows) {
      problem.lse[(queries.first + first_query + row) * problem.heads + task.head] =
          total == 0.0f ? -INFINITY : (maximum[half] + log2f(total)) * ln_of_2;
    }
  }
  store_head_rows<Tile>(HeadResult<T>{static_cast<T*>(problem.out), problem.heads, task.head, head_dim}, out,
                        factor, query_rows, queries.first + first_query, rows, lane);
}

}  // namespace vleff::cuda

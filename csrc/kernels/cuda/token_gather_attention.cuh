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

// Blocks that a multiprocessor's registers have to hold: more hide the waits of each other.
template <class Tile>
constexpr int forward_blocks = sizeof(typename Tile::Element) == 2 && Tile::width <= 64 ? 4 : 1;

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, forward_blocks<Tile>)
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
  const int lane_query = first_query + lane.warp * 16 + lane.group;  // the lane's other query is 8 further
  const int visible_to_all = visible_keys(problem.causal, first_query, queries.count, keys.count);
  const bool has_rows = lane.warp * 16 < rows;

  SumFragment out[Tile::width / 8] = {};
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  for (int first_key = 0, buffer = 0; first_key < visible; first_key += Tile::streamed_rows, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tile is in, and every warp has left the other buffer
    if (first_key + Tile::streamed_rows < visible) load_keys(first_key + Tile::streamed_rows, buffer ^ 1);
    if (!has_rows) continue;

    const int used = visible - first_key;
    SumFragment logits[Tile::streamed_rows / 8] = {};
    multiply_rows<Tile>(logits, query_rows, key_rows + buffer * Tile::streamed_bytes, lane, used);
    for_each_logit<Tile>(logits, lane, [&](float& logit, int, int) { logit *= scale; });
    if (problem.key_bias) {
      const float* const bias = biases + buffer * Tile::streamed_rows;
      for_each_logit<Tile>(logits, lane,
                           [&](float& logit, int, int column) { logit += bias[column] * log2_of_e; });
    }
    if (first_key + Tile::streamed_rows > visible_to_all) {
      const int limit[2] = {visible_keys(problem.causal, lane_query, queries.count, keys.count),
                            visible_keys(problem.causal, lane_query + 8, queries.count, keys.count)};
      for_each_logit<Tile>(logits, lane, [&](float& logit, int half, int column) {
        if (first_key + column >= limit[half]) logit = -INFINITY;
      });
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
          logits[j][e] = exp2_approximate(logits[j][e] - reference);
          tile_sum += logits[j][e];
        }
      }
      sum[half] = sum[half] * shrink + tile_sum;
#pragma unroll
      for (int j = 0; j < Tile::width / 8; ++j) {
        out[j][2 * half] *= shrink;
        out[j][2 * half + 1] *= shrink;
      }
    }
    if (problem.dropout_p > 0) {  // made here, so that no register holds it where there is none
      const uint32_t threshold = DropoutRow::threshold(problem.dropout_p);
      const DropoutRow dropout[2] = {DropoutRow(*problem.seed, task.sample, task.head, lane_query),
                                     DropoutRow(*problem.seed, task.sample, task.head, lane_query + 8)};
      for_each_logit<Tile>(logits, lane, [&](float& weight, int half, int column) {
        if (dropout[half].word(first_key + column) < threshold) weight = 0.0f;
      });
    }
    multiply_weights<Tile>(out, logits, value_rows + buffer * Tile::streamed_bytes, lane, 0, used);
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

#pragma once
#include "attention_task.cuh"
#include "term_sums.cuh"

// Gradients of token_gather_attention. With P as forward had it, dP = keep / (1 - dropout_p) * <dO, v> and
// delta = <dO, out> - dlse, the logits' gradient is dS = P * (dP - delta). One kernel takes tiles of queries
// and sums dS k over the keys, another takes tiles of keys and sums over the queries: every sum has one owner
// and one order, for which the logits are computed twice.
namespace vleff::cuda {

constexpr int delta_warps = 4;

// Numbers that stand beside the streamed rows: lse, delta and the dropout pattern of queries, or key biases.
template <class Tile>
constexpr int backward_shared_bytes =
    2 * Tile::stationary_bytes + 4 * Tile::streamed_bytes + 2 * Tile::streamed_rows * 16;

// The columns of a gradient that a block sums: as many as its registers hold.
template <class Tile>
constexpr int gradient_columns = Tile::width < 256 / static_cast<int>(sizeof(typename Tile::Element))
                                     ? Tile::width
                                     : 256 / static_cast<int>(sizeof(typename Tile::Element));

// What P is the exponential of, for <q, k>. lse is subtracted before anything is rounded: logits may be
// large, their distances from lse are not. Those that see no key have an lse of -inf, and P is 0.
__device__ __forceinline__ float distance_from_lse(float product, float scale, float lse) {
  return fmaf(product, scale, lse == -INFINITY ? -INFINITY : -lse);
}
__device__ __forceinline__ float attention_weight(float distance) {
  return exp2_approximate(distance * log2_of_e);
}

// grad_out, whose rows follow each other.
template <class T>
__device__ __forceinline__ HeadOperand<T> contiguous_head(const void* data, const AttentionProblem& problem,
                                                          int head) {
  return HeadOperand<T>({data, problem.heads * problem.head_dim, problem.head_dim}, head);
}
__device__ __forceinline__ RaggedSide without_index(const RaggedSide& side) {
  return {side.offsets, {nullptr, false}, side.total, side.total, side.longest};
}

// One head of a gradient [rows, heads, head_dim], float32 or T.
template <class T>
struct HeadGradient {
  void* data;
  bool is_float32;
  int64_t heads;
  int head, head_dim;

  __device__ void store(int64_t row, int column, float low, float high) const {
    if (is_float32)
      store_pair(static_cast<float*>(data), row, column, low, high);
    else
      store_pair(static_cast<T*>(data), row, column, low, high);
  }
  // Rows [first, first + rows) become 0.
  template <int threads>
  __device__ void zero(int first, int rows) const {
    const int pairs = (head_dim + 1) / 2;
    for (int i = threadIdx.x; i < rows * pairs; i += threads) {
      store(first + i / pairs, i % pairs * 2, 0.0f, 0.0f);
    }
  }
  // The warp's 16 rows of sums, times `factor`, from `first_column` on.
  template <int fragments>
  __device__ void store_sums(const SumFragment (&sums)[fragments], float factor, int first_row, int rows,
                             int first_column, const Lane& lane) const {
#pragma unroll
    for (int j = 0; j < fragments; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane.warp * 16 + lane.group + 8 * half;
        const int column = first_column + 8 * j + 2 * lane.thread;
        if (row < rows && column < head_dim) {
          store(first_row + row, column, sums[j][2 * half] * factor, sums[j][2 * half + 1] * factor);
        }
      }
    }
  }

 private:
  template <class G>
  __device__ void store_pair(G* gradient, int64_t row, int column, float low, float high) const {
    G* const target = gradient + (row * heads + head) * head_dim + column;
    if (head_dim % 2 == 0) {
      *reinterpret_cast<typename Pair<G>::Type*>(target) = Pair<G>::of(low, high);
    } else {
      target[0] = static_cast<G>(low);
      if (column + 1 < head_dim) target[1] = static_cast<G>(high);
    }
  }
};

// delta; a warp takes one row and head.
template <class T>
__global__ void __launch_bounds__(delta_warps* warp_size)
    token_gather_attention_delta(const __grid_constant__ AttentionGradientProblem gradient) {
  const AttentionProblem& problem = gradient.attention;
  const int64_t row = int64_t{blockIdx.x} * delta_warps + threadIdx.x / warp_size;
  if (row >= problem.queries.total * problem.heads) return;
  const T* const out = static_cast<const T*>(problem.out) + row * problem.head_dim;
  const T* const grad_out = static_cast<const T*>(gradient.grad_out) + row * problem.head_dim;
  const float sum = sum_terms(static_cast<int>(problem.head_dim), [&](int i) {
    return static_cast<float>(out[i]) * static_cast<float>(grad_out[i]);
  });
  if (threadIdx.x % warp_size == 0) {
    gradient.delta[row] = sum - (gradient.grad_lse ? gradient.grad_lse[row] : 0.0f);
  }
}

// Blocks that a multiprocessor's registers have to hold: more hide the waits of each other.
template <class Tile>
constexpr bool is_small = sizeof(typename Tile::Element) == 2 && Tile::width <= 64;
template <class Tile>
constexpr int grad_queries_blocks = is_small<Tile> ? 4 : 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900  // where three would spill
template <class Tile>
constexpr int grad_keys_blocks = is_small<Tile> ? 2 : 1;
#else
template <class Tile>
constexpr int grad_keys_blocks = is_small<Tile> ? 3 : 1;
#endif

// grad_q of one tile of queries.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, grad_queries_blocks<Tile>)
    token_gather_attention_grad_queries(const __grid_constant__ AttentionGradientProblem gradient) {
  using T = typename Tile::Element;
  const AttentionProblem& problem = gradient.attention;
  const int tiles = tiles_of(problem.queries, Tile::stationary_rows);
  const BlockTask task(problem, tiles);
  const int head_dim = static_cast<int>(problem.head_dim);
  const HeadGradient<T> grad_q{gradient.grad_q, gradient.float32_queries, problem.heads, task.head, head_dim};
  const auto fill = [&](int first, int rows) { grad_q.template zero<Tile::threads>(first, rows); };
  if (task.sample == problem.batch) {
    fill_unowned_rows<Tile>(problem.queries, problem.batch, task.tile, tiles, fill);
    return;
  }
  const SampleRows queries(problem.queries, task.sample), keys(problem.keys, task.sample);
  const int first_query = task.tile * Tile::stationary_rows;
  if (first_query >= queries.count) return;
  const int rows = min(queries.count - first_query, Tile::stationary_rows);
  const int visible = visible_keys(problem.causal, first_query + rows - 1, queries.count, keys.count);
  if (visible == 0 || task.dropped(problem)) {
    fill(queries.first + first_query, rows);
    return;
  }

  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* const query_rows = shared;
  unsigned char* const grad_out_rows = query_rows + Tile::stationary_bytes;
  unsigned char* const key_rows = grad_out_rows + Tile::stationary_bytes;
  unsigned char* const value_rows = key_rows + 2 * Tile::streamed_bytes;
  float* const biases = reinterpret_cast<float*>(value_rows + 2 * Tile::streamed_bytes);
  const HeadOperand<T> q(problem.q, task.head), k(problem.k, task.head), v(problem.v, task.head);
  const HeadOperand<T> grad_out = contiguous_head<T>(gradient.grad_out, problem, task.head);
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
  load_rows<Tile, Tile::stationary_rows>(grad_out_rows, grad_out, without_index(problem.queries), queries,
                                         first_query, head_dim);
  load_keys(0, 0);

  const Lane lane;
  const bool has_rows = lane.warp * 16 < rows;
  const int lane_query = first_query + lane.warp * 16 + lane.group;  // the lane's other query is 8 further
  const int visible_to_all = visible_keys(problem.causal, first_query, queries.count, keys.count);
  float lse[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool present = lane_query + 8 * half < first_query + rows;
    const int64_t position = (queries.first + lane_query + 8 * half) * problem.heads + task.head;
    lse[half] = present ? problem.lse[position] : -INFINITY;
    delta[half] = present ? gradient.delta[position] : 0.0f;
  }

  SumFragment sums[Tile::width / 8] = {};
  for (int first_key = 0, buffer = 0; first_key < visible; first_key += Tile::streamed_rows, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tile is in, and every warp has left the other buffer
    if (first_key + Tile::streamed_rows < visible) load_keys(first_key + Tile::streamed_rows, buffer ^ 1);
    if (!has_rows) continue;

    const int used = visible - first_key;
    SumFragment logits[Tile::streamed_rows / 8] = {}, grad_weights[Tile::streamed_rows / 8] = {};
    multiply_rows<Tile>(logits, query_rows, key_rows + buffer * Tile::streamed_bytes, lane, used);
    multiply_rows<Tile>(grad_weights, grad_out_rows, value_rows + buffer * Tile::streamed_bytes, lane, used);
    for_each_logit<Tile>(logits, lane, [&](float& logit, int half, int) {
      logit = distance_from_lse(logit, problem.scale, lse[half]);
    });
    if (problem.key_bias) {
      const float* const bias = biases + buffer * Tile::streamed_rows;
      for_each_logit<Tile>(logits, lane, [&](float& logit, int, int column) { logit += bias[column]; });
    }
    if (first_key + Tile::streamed_rows > visible_to_all) {
      const int limit[2] = {visible_keys(problem.causal, lane_query, queries.count, keys.count),
                            visible_keys(problem.causal, lane_query + 8, queries.count, keys.count)};
      for_each_logit<Tile>(logits, lane, [&](float& logit, int half, int column) {
        if (first_key + column >= limit[half]) logit = -INFINITY;
      });
    }
    if (problem.dropout_p > 0) {  // made here, so that no register holds it where there is none
      const float kept_scale = 1.0f / (1.0f - problem.dropout_p);
      const uint32_t threshold = DropoutRow::threshold(problem.dropout_p);
      const DropoutRow dropout[2] = {DropoutRow(*problem.seed, task.sample, task.head, lane_query),
                                     DropoutRow(*problem.seed, task.sample, task.head, lane_query + 8)};
      for_each_logit<Tile>(grad_weights, lane, [&](float& grad_weight, int half, int column) {
        const bool kept = dropout[half].word(first_key + column) >= threshold;
        grad_weight = kept ? grad_weight * kept_scale : 0.0f;
      });
    }
#pragma unroll
    for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        logits[j][e] = attention_weight(logits[j][e]) * (grad_weights[j][e] - delta[e / 2]);
      }
    }
    multiply_weights<Tile>(sums, logits, key_rows + buffer * Tile::streamed_bytes, lane, 0, used);
  }
  grad_q.store_sums(sums, problem.scale, queries.first + first_query, rows, 0, lane);
}

// grad_k and grad_v of one tile of keys, in some columns, and what one head adds to grad_key_bias.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, grad_keys_blocks<Tile>)
    token_gather_attention_grad_keys(const __grid_constant__ AttentionGradientProblem gradient) {
  using T = typename Tile::Element;
  constexpr int columns = gradient_columns<Tile>, column_parts = Tile::width / columns;
  const AttentionProblem& problem = gradient.attention;
  const int tiles = tiles_of(problem.keys, Tile::stationary_rows);
  const BlockTask task(problem, tiles * column_parts);
  const int tile = task.tile / column_parts;
  const int first_column = column_parts == 1 ? 0 : task.tile % column_parts * columns;
  const int head_dim = static_cast<int>(problem.head_dim);
  const HeadGradient<T> grad_k{gradient.grad_k, gradient.float32_keys, problem.heads, task.head, head_dim};
  const HeadGradient<T> grad_v{gradient.grad_v, gradient.float32_keys, problem.heads, task.head, head_dim};
  float* const bias_sums =
      gradient.grad_key_bias ? gradient.head_key_biases + task.head * problem.keys.total : nullptr;
  const auto fill = [&](int first, int rows) {
    grad_k.template zero<Tile::threads>(first, rows);
    grad_v.template zero<Tile::threads>(first, rows);
    if (!bias_sums) return;
    for (int row = threadIdx.x; row < rows; row += Tile::threads) bias_sums[first + row] = 0.0f;
  };
  if (task.sample == problem.batch) {
    if (first_column == 0) fill_unowned_rows<Tile>(problem.keys, problem.batch, tile, tiles, fill);
    return;
  }
  if (first_column >= head_dim) return;
  const SampleRows queries(problem.queries, task.sample), keys(problem.keys, task.sample);
  const int first_key = tile * Tile::stationary_rows;
  if (first_key >= keys.count) return;
  const int rows = min(keys.count - first_key, Tile::stationary_rows);
  // Causal: key j is seen by the queries from j - (keys - queries) on.
  const int hidden_queries = problem.causal ? max(0, first_key - (keys.count - queries.count)) : 0;
  if (hidden_queries >= queries.count || task.dropped(problem)) {
    if (first_column == 0) fill(keys.first + first_key, rows);
    return;
  }

  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* const key_rows = shared;
  unsigned char* const value_rows = key_rows + Tile::stationary_bytes;
  unsigned char* const query_rows = value_rows + Tile::stationary_bytes;
  unsigned char* const grad_out_rows = query_rows + 2 * Tile::streamed_bytes;
  float* const lse_rows = reinterpret_cast<float*>(grad_out_rows + 2 * Tile::streamed_bytes);
  float* const delta_rows = lse_rows + 2 * Tile::streamed_rows;
  DropoutRow* const patterns = reinterpret_cast<DropoutRow*>(delta_rows + 2 * Tile::streamed_rows);
  const int heads = static_cast<int>(problem.heads);
  const HeadOperand<T> q(problem.q, task.head), k(problem.k, task.head), v(problem.v, task.head);
  const HeadOperand<T> grad_out = contiguous_head<T>(gradient.grad_out, problem, task.head);
  const int64_t first_number = queries.first * problem.heads + task.head;
  const bool with_dropout = problem.dropout_p > 0;
  const auto load_queries = [&](int first_query, int buffer) {
    const int row = buffer * Tile::streamed_rows;
    load_rows<Tile, Tile::streamed_rows>(query_rows + buffer * Tile::streamed_bytes, q, problem.queries,
                                         queries, first_query, head_dim);
    load_rows<Tile, Tile::streamed_rows>(grad_out_rows + buffer * Tile::streamed_bytes, grad_out,
                                         without_index(problem.queries), queries, first_query, head_dim);
    load_numbers<Tile>(lse_rows + row, problem.lse + first_number, first_query, queries.count, heads);
    load_numbers<Tile>(delta_rows + row, gradient.delta + first_number, first_query, queries.count, heads);
    if (!with_dropout) return;
    for (int i = threadIdx.x; i < Tile::streamed_rows; i += Tile::threads) {
      patterns[row + i] = DropoutRow(*problem.seed, task.sample, task.head, first_query + i);
    }
  };
  const int start = hidden_queries / Tile::streamed_rows * Tile::streamed_rows;
  load_rows<Tile, Tile::stationary_rows>(key_rows, k, problem.keys, keys, first_key, head_dim);
  load_rows<Tile, Tile::stationary_rows>(value_rows, v, problem.keys, keys, first_key, head_dim);
  load_queries(start, 0);

  const Lane lane;
  const bool has_rows = lane.warp * 16 < rows;
  const int lane_key = first_key + lane.warp * 16 + lane.group;  // the lane's other key is 8 further
  float bias[2] = {0.0f, 0.0f}, bias_sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane.warp * 16 + lane.group + 8 * half;
    if (problem.key_bias && row < rows) bias[half] = problem.key_bias[keys.first + first_key + row];
  }
  SumFragment key_sums[columns / 8] = {}, value_sums[columns / 8] = {};
  for (int first_query = start, buffer = 0; first_query < queries.count;
       first_query += Tile::streamed_rows, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tile is in, and every warp has left the other buffer
    if (first_query + Tile::streamed_rows < queries.count) {
      load_queries(first_query + Tile::streamed_rows, buffer ^ 1);
    }
    if (!has_rows) continue;

    const int used = queries.count - first_query;
    unsigned char* const these_queries = query_rows + buffer * Tile::streamed_bytes;
    unsigned char* const these_grads = these_queries + 2 * Tile::streamed_bytes;
    const float* const lse = lse_rows + buffer * Tile::streamed_rows;
    const float* const delta = lse + 2 * Tile::streamed_rows;
    SumFragment weights[Tile::streamed_rows / 8] = {}, grad_logits[Tile::streamed_rows / 8] = {};
    multiply_rows<Tile>(weights, key_rows, these_queries, lane, used);
    multiply_rows<Tile>(grad_logits, value_rows, these_grads, lane, used);
    for_each_logit<Tile>(weights, lane, [&](float& weight, int half, int column) {
      weight = distance_from_lse(weight, problem.scale, lse[column]) + bias[half];
    });
    if (problem.causal || used < Tile::streamed_rows) {
      for_each_logit<Tile>(weights, lane, [&](float& weight, int half, int column) {
        const bool sees = lane_key + 8 * half <
                          visible_keys(problem.causal, first_query + column, queries.count, keys.count);
        if (column >= used || !sees) weight = -INFINITY;
      });
    }
    for_each_logit<Tile>(weights, lane, [&](float& weight, int, int) { weight = attention_weight(weight); });
    if (with_dropout) {
      const float kept_scale = 1.0f / (1.0f - problem.dropout_p);
      const uint32_t threshold = DropoutRow::threshold(problem.dropout_p);
      const DropoutRow* const pattern = patterns + buffer * Tile::streamed_rows;
#pragma unroll
      for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = 8 * j + 2 * lane.thread + e % 2;
          const bool kept = pattern[column].word(lane_key + e / 2 * 8) >= threshold;
          const float grad_weight = kept ? grad_logits[j][e] * kept_scale : 0.0f;
          grad_logits[j][e] = weights[j][e] * (grad_weight - delta[column]);
          weights[j][e] = kept ? weights[j][e] * kept_scale : 0.0f;
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          grad_logits[j][e] = weights[j][e] * (grad_logits[j][e] - delta[8 * j + 2 * lane.thread + e % 2]);
        }
      }
    }
    if (bias_sums) {
      for_each_logit<Tile>(grad_logits, lane,
                           [&](float& grad_logit, int half, int) { bias_sum[half] += grad_logit; });
    }
    multiply_weights<Tile, columns>(value_sums, weights, these_grads, lane, first_column, used);
    multiply_weights<Tile, columns>(key_sums, grad_logits, these_queries, lane, first_column, used);
  }
  grad_k.store_sums(key_sums, problem.scale, keys.first + first_key, rows, first_column, lane);
  grad_v.store_sums(value_sums, 1.0f, keys.first + first_key, rows, first_column, lane);
  if (!bias_sums || first_column > 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = sum_of_row(bias_sum[half]);
    const int row = lane.warp * 16 + lane.group + 8 * half;
    if (lane.thread == 0 && row < rows) bias_sums[keys.first + first_key + row] = total;
  }
}

// grad_key_bias, summed over the heads; a thread takes one key.
__global__ void __launch_bounds__(delta_warps* warp_size)
    token_gather_attention_grad_key_bias(const __grid_constant__ AttentionGradientProblem gradient) {
  const int64_t keys = gradient.attention.keys.total;
  const int64_t key = int64_t{blockIdx.x} * delta_warps * warp_size + threadIdx.x;
  if (key >= keys) return;
  float sum = 0.0f;
  for (int64_t head = 0; head < gradient.attention.heads; ++head) {
    sum += gradient.head_key_biases[head * keys + key];
  }
  gradient.grad_key_bias[key] = sum;
}

}  // namespace vleff::cuda

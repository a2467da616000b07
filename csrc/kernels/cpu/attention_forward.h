#pragma once
#include "attention_common.h"

namespace vleff::VLEFF_ISA {

// A block of queries is attended at a time; its logits against all keys of the sample stay in L2.
#if defined(__AMX_BF16__)
constexpr int64_t forward_query_block = 4 * tile_side;
#else
constexpr int64_t forward_query_block = 4 * tile_rows;
#endif
// Keys of one pass of the product with V: their panel slice stays in L1.
constexpr int64_t value_depth_block = 128;

template <class Product>
struct ForwardScratch {
  Word *queries, *keys, *values;
  float *logits, *context, *key_bias, *importance;

  ForwardScratch(Arena& arena, const AttentionProblem& problem, int64_t max_k) {
    const int64_t width = words<Product>(problem.head_dim);
    queries = arena.take<Word>(forward_query_block * width);
    keys = arena.take<Word>(panel_words(max_k, width));
    values = arena.take<Word>(panel_words(problem.head_dim, words<Product>(max_k)));
    logits = arena.take<float>(forward_query_block * logits_stride(max_k));
    context = arena.take<float>(forward_query_block * round_up(problem.head_dim, lanes));
    key_bias = arena.take<float>(round_up(max_k, lanes));
    importance = arena.take<float>(round_up(max_k, lanes));
  }
};

struct RowStatistics {
  float maximum;  // of the logits, times log2(e)
  float sum;      // of 2 ** (logits - maximum)
};

// Of the rows of a block, with room for whole vectors.
struct BlockStatistics {
  static constexpr int64_t room = (forward_query_block + lanes - 1) / lanes * lanes;
  float maximum[room], sum[room];

  void set(int64_t row, RowStatistics statistics) {
    maximum[row] = statistics.maximum;
    sum[row] = statistics.sum;
  }
  // The logarithms of the rows' sums of exponentials, in place of the maxima: `count` of them, and some more.
  void finish(int64_t count) {
    for (int64_t row = 0; row < count; row += lanes)
      store(maximum + row, load(maximum + row) * ln_of_2 + natural_log(load(sum + row)));
  }
};

// Turns a row of products <q, k> into P * sum as words of the product with V, zero from `visible` up to
// `columns`. In place: a bfloat16 row takes the first half of its float32 row.
template <class Product, bool biased>
RowStatistics softmax_row(float* row, int64_t visible, int64_t columns, float scale, const float* key_bias,
                          const DropoutRow* dropout, float* importance) {
  Float largest = broadcast(-infinity);
  for (int64_t key = 0; key < visible; key += lanes)
    largest = maximum(largest, base_two_logits<biased>(row, key_bias, key, visible, scale));
  const float row_maximum = reduce_maximum(largest);
  if (row_maximum == -infinity) {
    for (int64_t key = 0; key < columns; key += lanes) store(row + key, Float{});
    return {row_maximum, 0.0f};
  }
  Float sum{};
  auto finish = [&](Float weights, int64_t key) {
    if (dropout) weights = dropout->keep(weights, key);
    if constexpr (Product::elements_per_word == 1)
      store(row + key, weights);
    else
      store(reinterpret_cast<BFloat16*>(row) + key, weights);
  };
  if (!importance) {
    for (int64_t key = 0; key < visible; key += lanes) {
      Float weights = exp2(base_two_logits<biased>(row, key_bias, key, visible, scale) - row_maximum);
      sum += weights;
      finish(weights, key);
    }
  } else {
    for (int64_t key = 0; key < visible; key += lanes) {
      Float weights = exp2(base_two_logits<biased>(row, key_bias, key, visible, scale) - row_maximum);
      sum += weights;
      store(row + key, weights);
    }
    const float inverse = 1.0f / reduce_add(sum);
    for (int64_t key = 0; key < visible; key += lanes) {
      Float weights = load(row + key);
      store(importance + key, load(importance + key) + weights * inverse);
      finish(weights, key);
    }
  }
  for (int64_t key = round_up(visible, lanes); key < columns; key += lanes) {
    if constexpr (Product::elements_per_word == 1)
      store(row + key, Float{});
    else
      store(reinterpret_cast<BFloat16*>(row) + key, Float{});
  }
  return {row_maximum, reduce_add(sum)};
}

// Attends the queries [begin, end) of one (sample, head).
template <class T, class Product>
void attend(const AttentionProblem& problem, const AttentionOutput& output, const HeadTask<T>& task,
            int64_t begin, int64_t end, const ForwardScratch<Product>& scratch, const HeadTask<T>* next) {
  const int64_t head_dim = problem.head_dim, width = words<Product>(head_dim);
  const int64_t out_stride = problem.heads * head_dim, context_stride = round_up(head_dim, lanes);
  T* out = static_cast<T*>(output.out) + task.first_query * out_stride + task.head * head_dim;
  float* lse = output.lse + task.first_query * problem.heads + task.head;
  const bool empty = task.dropped || task.keys == 0;
  if (empty) {
    fill_rows(out + begin * out_stride, end - begin, out_stride, head_dim, 0.0f);
    for (int64_t query = begin; query < end; ++query) lse[query * problem.heads] = -infinity;
  } else {
    const int64_t stride = logits_stride(task.keys);
    const float scale = problem.scale * log2_of_e, kept_scale = 1.0f / (1.0f - problem.dropout_p);
    const int64_t depth_block = value_depth_block / Product::elements_per_word;
    pack_transposed<Product>(task.k, task.keys, width, scratch.keys);
    const Panels values = right_operand<Product>(task.v, task.keys, scratch.values);
    if (task.key_bias) scale_key_bias(task.key_bias, task.keys, scratch.key_bias);
    if (output.importance) fill_rows(scratch.importance, 1, 0, round_up(task.keys, lanes), 0.0f);

    for (int64_t first = begin; first < end; first += forward_query_block) {
      const int64_t queries = min(end - first, forward_query_block);
      const int64_t visible = task.visible(problem, first + queries - 1), columns = round_up(visible, lanes);
      multiply<Product>(left_operand<Product>(task.q.from(first), queries, scratch.queries),
                        packed_panels(scratch.keys, width), {scratch.logits, stride}, queries, visible, width,
                        false);
      BlockStatistics rows;
      for (int64_t query = 0; query < queries; ++query) {
        if (next) next->prefetch(first + query);
        for (int64_t column = 0; column < head_dim; column += 64 / static_cast<int64_t>(sizeof(T)))
          __builtin_prefetch(out + (first + query) * out_stride + column, 1, 3);
        float* importance = output.importance ? scratch.importance : nullptr;
        float* row = scratch.logits + query * stride;
        const int64_t seen = task.visible(problem, first + query);
        const auto softmax = [&](const DropoutRow* dropout) {
          return task.key_bias
                     ? softmax_row<Product, true>(row, seen, columns, scale, scratch.key_bias, dropout,
                                                  importance)
                     : softmax_row<Product, false>(row, seen, columns, scale, nullptr, dropout, importance);
        };
        if (problem.dropout_p > 0) {
          const DropoutRow pattern(problem, task.sample, task.head, first + query);
          rows.set(query, softmax(&pattern));
        } else {
          rows.set(query, softmax(nullptr));
        }
      }
      const int64_t used_depth = words<Product>(visible);
      const Word* weights = reinterpret_cast<const Word*>(scratch.logits);
      for (int64_t word = 0; word == 0 || word < used_depth; word += depth_block)
        multiply<Product>({weights + word, stride, 1}, values, {scratch.context, context_stride}, queries,
                          head_dim, min(used_depth - word, depth_block), word > 0, word);
      for (int64_t query = 0; query < queries; ++query) {
        const float factor = rows.maximum[query] == -infinity ? 0.0f : kept_scale / rows.sum[query];
        for (int64_t column = 0; column < head_dim; column += lanes)
          store_first(out + (first + query) * out_stride + column,
                      load(scratch.context + query * context_stride + column) * factor, head_dim - column);
      }
      rows.finish(queries);
      for (int64_t query = 0; query < queries; ++query)
        lse[(first + query) * problem.heads] = rows.maximum[query];
    }
  }
  if (output.importance) {
    float* importance = output.importance + task.first_key * problem.heads + task.head;
    for (int64_t key = 0; key < task.keys; ++key)
      importance[key * problem.heads] = empty ? 0.0f : scratch.importance[key];
  }
}

template <class T, class Product>
struct Forward {
  static int64_t scratch_bytes(const AttentionProblem& problem, int64_t, int64_t max_k) {
    Arena arena(nullptr);
    ForwardScratch<Product>(arena, problem, max_k);
    return arena.used();
  }

  static void run(const AttentionProblem& problem, const AttentionOutput& output, int64_t max_q,
                  int64_t max_k, void* scratch, const Parallel& parallel) {
    // Few heads and many threads: a head's queries are split too. Importance sums over a head's queries in
    // order, so there a head is one task.
    const int64_t heads = problem.batch * problem.heads;
    if (heads == 0) return;
    const int64_t wanted = (4 * parallel.threads + heads - 1) / heads;
    const int64_t possible = (max_q + 4 * forward_query_block - 1) / (4 * forward_query_block);
    const int64_t parts = output.importance ? 1 : max(1, min(wanted, possible));
    const int64_t bytes = scratch_bytes(problem, max_q, max_k);
    for_each_task(parallel, heads * parts, [&](int64_t worker, int64_t number, int64_t next) {
      Arena arena(static_cast<char*>(scratch) + worker * bytes);
      const ForwardScratch<Product> buffers(arena, problem, max_k);
      const HeadTask<T> task(problem, number / parts / problem.heads, number / parts % problem.heads);
      const int64_t after = max(next, 0) / parts;
      const HeadTask<T> following(problem, after / problem.heads, after % problem.heads);
      const int64_t length = round_up((task.queries + parts - 1) / parts, forward_query_block);
      const int64_t begin = number % parts * length, end = min(task.queries, begin + length);
      if (begin < end || (output.importance && task.keys > 0))
        attend(problem, output, task, begin, end, buffers, next >= 0 ? &following : nullptr);
    });
  }
};

}  // namespace vleff::VLEFF_ISA

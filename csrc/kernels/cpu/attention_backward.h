#pragma once
#include "attention_common.h"
#include "gradient_blocks.h"
#include "row_sums.h"

namespace vleff::VLEFF_ISA {

// Queries of one pass; even, so that bfloat16 pairs of queries never straddle two passes.
constexpr int64_t backward_query_block = 8 * tile_rows;

template <class Product>
struct BackwardScratch {
  // Of the sample's keys: right operands of the products with K^T, V^T and K; gradients.
  Word *keys_transposed, *values_transposed, *keys;
  float *grad_keys, *grad_values, *grad_key_bias, *key_bias;
  // Of a block of queries: left and right operands; P and dS as float32 and as words.
  Word *queries, *queries_right, *grad_out, *grad_out_right;
  float *weights, *grad_logits, *grad_queries;
  Word *weight_pairs, *grad_logit_pairs;

  BackwardScratch(Arena& arena, const AttentionProblem& problem, int64_t max_k) {
    const int64_t block = backward_query_block, width = words<Product>(problem.head_dim);
    const int64_t stride = logits_stride(max_k), row = round_up(problem.head_dim, lanes);
    keys_transposed = arena.take<Word>(panel_words(max_k, width));
    values_transposed = arena.take<Word>(panel_words(max_k, width));
    keys = arena.take<Word>(panel_words(problem.head_dim, words<Product>(max_k)));
    grad_keys = arena.take<float>(max_k * row);
    grad_values = arena.take<float>(max_k * row);
    grad_key_bias = arena.take<float>(round_up(max_k, lanes));
    key_bias = arena.take<float>(round_up(max_k, lanes));
    queries = arena.take<Word>(block * width);
    queries_right = arena.take<Word>(panel_words(problem.head_dim, words<Product>(block)));
    grad_out = arena.take<Word>(block * width);
    grad_out_right = arena.take<Word>(panel_words(problem.head_dim, words<Product>(block)));
    weights = arena.take<float>(block * stride);
    grad_logits = arena.take<float>(block * stride);
    grad_queries = arena.take<float>(block * row);
    const bool pairs = Product::elements_per_word == 2;
    weight_pairs = arena.take<Word>(pairs ? block / 2 * stride : 0);
    grad_logit_pairs = arena.take<Word>(pairs ? block / 2 * stride : 0);
  }
};

// One row of
//   weights: <q, k>  -> keep * P / (1 - dropout_p)      grad_logits: <dO, v> -> dS
// where dS = P * (keep / (1 - dropout_p) * <dO, v> - delta); both 0 from `visible` up to `columns`.
template <bool biased>
void softmax_gradient_row(float* weights, float* grad_logits, int64_t visible, int64_t columns, float scale,
                          const float* key_bias, float lse, float delta, const DropoutRow* dropout,
                          float kept_scale, float* grad_key_bias) {
  const bool no_visible_key = lse == -infinity;
  const float base_two_lse = lse * log2_of_e;
  const int64_t seen = no_visible_key ? 0 : visible;
  for (int64_t key = 0; key < seen; key += lanes) {
    Float p = exp2(base_two_logits<biased>(weights, key_bias, key, visible, scale) - base_two_lse);
    Float kept = p, grad_weights = load(grad_logits + key);
    if (dropout) {
      kept = dropout->keep(p, key) * kept_scale;
      grad_weights = dropout->keep(grad_weights, key) * kept_scale;
    }
    Float grad = p * (grad_weights - delta);
    store(weights + key, kept);
    store(grad_logits + key, grad);
    if (grad_key_bias) store(grad_key_bias + key, load(grad_key_bias + key) + grad);
  }
  for (int64_t key = round_up(seen, lanes); key < columns; key += lanes) {
    store(weights + key, Float{});
    store(grad_logits + key, Float{});
  }
}

// G is the type of the gradients.
template <class T, class Product, class G>
void attend_backward(const AttentionProblem& problem, const AttentionGradient& gradient,
                     const HeadTask<T>& task, const BackwardScratch<Product>& scratch) {
  const int64_t head_dim = problem.head_dim, width = words<Product>(head_dim),
                row = round_up(head_dim, lanes);
  const int64_t row_stride = problem.heads * head_dim, head_start = task.head * head_dim;
  G* grad_q = static_cast<G*>(gradient.grad_q) + task.first_query * row_stride + head_start;
  G* grad_k = static_cast<G*>(gradient.grad_k) + task.first_key * row_stride + head_start;
  G* grad_v = static_cast<G*>(gradient.grad_v) + task.first_key * row_stride + head_start;
  float* grad_key_bias = gradient.grad_key_bias
                             ? gradient.grad_key_bias + task.head * problem.total_k + task.first_key
                             : nullptr;
  if (task.dropped || task.keys == 0 || task.queries == 0) {
    fill_rows(grad_q, task.queries, row_stride, head_dim, 0.0f);
    fill_rows(grad_k, task.keys, row_stride, head_dim, 0.0f);
    fill_rows(grad_v, task.keys, row_stride, head_dim, 0.0f);
    if (grad_key_bias) fill_rows(grad_key_bias, 1, 0, task.keys, 0.0f);
    return;
  }
  const RaggedRows<T> out = task.template contiguous<T>(gradient.out, problem, task.first_query);
  const RaggedRows<T> grad_out = task.template contiguous<T>(gradient.grad_out, problem, task.first_query);
  const int64_t stride = logits_stride(task.keys), key_words = words<Product>(task.keys);
  const int64_t block_words = words<Product>(backward_query_block);
  const float scale = problem.scale * log2_of_e, kept_scale = 1.0f / (1.0f - problem.dropout_p);
  pack_transposed<Product>(task.k, task.keys, width, scratch.keys_transposed);
  pack_transposed<Product>(task.v, task.keys, width, scratch.values_transposed);
  pack_right<Product>(task.k, task.keys, key_words, scratch.keys);
  if (task.key_bias) scale_key_bias(task.key_bias, task.keys, scratch.key_bias);
  if (grad_key_bias) fill_rows(scratch.grad_key_bias, 1, 0, round_up(task.keys, lanes), 0.0f);
  // Causal blocks leave the keys that they do not see untouched.
  fill_rows(scratch.grad_keys, 1, 0, task.keys * row, 0.0f);
  fill_rows(scratch.grad_values, 1, 0, task.keys * row, 0.0f);

  for (int64_t first = 0; first < task.queries; first += backward_query_block) {
    const int64_t queries = min(task.queries - first, backward_query_block);
    const int64_t visible = task.visible(problem, first + queries - 1), columns = round_up(visible, lanes);
    pack_right<Product>(task.q.from(first), queries, block_words, scratch.queries_right);
    pack_right<Product>(grad_out.from(first), queries, block_words, scratch.grad_out_right);
    multiply<Product>(left_operand<Product>(task.q.from(first), queries, scratch.queries),
                      packed_panels(scratch.keys_transposed, width), {scratch.weights, stride}, queries,
                      visible, width, false);
    multiply<Product>(left_operand<Product>(grad_out.from(first), queries, scratch.grad_out),
                      packed_panels(scratch.values_transposed, width), {scratch.grad_logits, stride}, queries,
                      visible, width, false);
    for (int64_t query = 0; query < queries; ++query) {
      const int64_t position = (task.first_query + first + query) * problem.heads + task.head;
      const float delta = dot(out[first + query], grad_out[first + query], head_dim) -
                          (gradient.grad_lse ? gradient.grad_lse[position] : 0.0f);
      const DropoutRow pattern(problem, task.sample, task.head, first + query);
      auto row_gradient = task.key_bias ? softmax_gradient_row<true> : softmax_gradient_row<false>;
      row_gradient(scratch.weights + query * stride, scratch.grad_logits + query * stride,
                   task.visible(problem, first + query), columns, scale, scratch.key_bias,
                   gradient.lse[position], delta, problem.dropout_p > 0 ? &pattern : nullptr, kept_scale,
                   grad_key_bias ? scratch.grad_key_bias : nullptr);
    }
    const Word* weights = reinterpret_cast<const Word*>(scratch.weights);
    const Word* grad_logits = reinterpret_cast<const Word*>(scratch.grad_logits);
    const Word *weight_columns = weights, *grad_logit_columns = grad_logits;
    if constexpr (Product::elements_per_word == 2) {
      pair_rows<T>(scratch.weights, queries, stride, columns, scratch.weight_pairs);
      pair_rows<T>(scratch.grad_logits, queries, stride, columns, scratch.grad_logit_pairs);
      weight_columns = scratch.weight_pairs;
      grad_logit_columns = scratch.grad_logit_pairs;
    }
    const int64_t depth = words<Product>(queries);
    multiply<Product>({weight_columns, 1, stride}, packed_panels(scratch.grad_out_right, block_words),
                      {scratch.grad_values, row}, visible, head_dim, depth, true);
    multiply<Product>({grad_logit_columns, 1, stride}, packed_panels(scratch.queries_right, block_words),
                      {scratch.grad_keys, row}, visible, head_dim, depth, true);
    multiply<Product>({grad_logits, stride, 1}, packed_panels(scratch.keys, key_words),
                      {scratch.grad_queries, row}, queries, head_dim, words<Product>(visible), false);
    store_gradient(scratch.grad_queries, queries, head_dim, problem.scale, grad_q + first * row_stride,
                   row_stride);
  }
  store_gradient(scratch.grad_keys, task.keys, head_dim, problem.scale, grad_k, row_stride);
  store_gradient(scratch.grad_values, task.keys, head_dim, 1.0f, grad_v, row_stride);
  if (grad_key_bias) store_gradient(scratch.grad_key_bias, 1, task.keys, 1.0f, grad_key_bias, 0);
}

template <class T, class Product>
struct Backward {
  static int64_t scratch_bytes(const AttentionProblem& problem, int64_t, int64_t max_k) {
    Arena arena(nullptr);
    BackwardScratch<Product>(arena, problem, max_k);
    return arena.used();
  }

  static void run(const AttentionProblem& problem, const AttentionGradient& gradient, int64_t max_q,
                  int64_t max_k, void* scratch, const Parallel& parallel) {
    const int64_t tasks = problem.batch * problem.heads;
    if (tasks == 0) return;
    const int64_t bytes = scratch_bytes(problem, max_q, max_k);
    for_each_task(parallel, tasks, [&](int64_t worker, int64_t number, int64_t) {
      Arena arena(static_cast<char*>(scratch) + worker * bytes);
      const BackwardScratch<Product> buffers(arena, problem, max_k);
      const HeadTask<T> task(problem, number / problem.heads, number % problem.heads);
      if (gradient.grad_type == DataType::float32)
        attend_backward<T, Product, float>(problem, gradient, task, buffers);
      else
        attend_backward<T, Product, T>(problem, gradient, task, buffers);
    });
  }
};

}  // namespace vleff::VLEFF_ISA

#pragma once
#include "head_masked_products.h"

// The gradient of head_masked_linear's weight: for each head, features times the width, summed over tokens.
namespace vleff::VLEFF_ISA {

// Features of a head, and columns of the width, of one task.
constexpr int64_t gradient_features = 192;
constexpr int64_t gradient_columns = 256;
// Tokens whose sum is made from 0 and then added: rounding grows with the number of such sums only.
constexpr int64_t gradient_tokens = 512;

template <class T, class Product>
struct HeadMaskedGradWeight {
  static int64_t scratch_bytes(const HeadMaskedGradWeightProblem&) {
    Arena arena(nullptr);
    Scratch{arena};
    return arena.used();
  }

  static void run(const HeadMaskedGradWeightProblem& problem, void* scratch, const Parallel& parallel) {
    const HeadFeatures& f = problem.features;
    const int64_t row_groups = (columns_of_head(f) + gradient_features - 1) / gradient_features;
    const int64_t column_groups = (f.width + gradient_columns - 1) / gradient_columns;
    const int64_t bytes = scratch_bytes(problem);
    for_each_task(parallel, f.heads * row_groups * column_groups, [&](int64_t worker, int64_t task, int64_t) {
      Arena arena(static_cast<char*>(scratch) + worker * bytes);
      const int64_t column = task % column_groups * gradient_columns, group = task / column_groups;
      sum_tokens(problem, Scratch{arena}, group / row_groups, group % row_groups * gradient_features, column);
    });
  }

 private:
  // Tokens of one pass, whose panel slices stay in the first-level cache.
  static constexpr int64_t pass_tokens = 128 * Product::elements_per_word;

  static constexpr int64_t bias_tokens = 32;
  static constexpr int64_t left_stride = gradient_features + lanes;

  struct Scratch {
    Word *left, *right;
    float *sums, *total, *bias_piece, *bias_sums, *bias_total;

    explicit Scratch(Arena& arena) {
      left = arena.take<Word>(pass_tokens / Product::elements_per_word * left_stride);
      right = arena.take<Word>(panel_words(gradient_columns, pass_tokens / Product::elements_per_word));
      sums = arena.take<float>(gradient_features * gradient_columns);
      total = arena.take<float>(gradient_features * gradient_columns);
      bias_piece = arena.take<float>(left_stride);
      bias_sums = arena.take<float>(left_stride);
      bias_total = arena.take<float>(left_stride);
    }
  };

  // sums += rows, by way of sums of few.
  static void add_tokens(RaggedRows<T> rows, int64_t count, float* piece, float* sums) {
    for (int64_t token = 0; token < count; token += bias_tokens) {
      fill_rows(piece, 1, 0, rows.width, 0.0f);
      for (int64_t i = token; i < min(count, token + bias_tokens); ++i)
        add_rows(rows[i], 1, 0, rows.width, piece);
      add_rows(piece, 1, 0, rows.width, sums);
    }
  }

  // The head's columns from `row` on and the columns of the width from `column` on.
  static void sum_tokens(const HeadMaskedGradWeightProblem& problem, const Scratch& scratch, int64_t head,
                         int64_t row, int64_t column) {
    const HeadFeatures& f = problem.features;
    const int64_t rows = min(gradient_features, columns_of_head(f) - row);
    const int64_t columns = min(gradient_columns, f.width - column);
    const bool with_bias = problem.grad_bias && column == 0;
    const T* of_features = static_cast<const T*>(problem.of_features);
    const RaggedRows<T> of_width{static_cast<const T*>(problem.of_width) + column, f.width, problem.index,
                                 columns};
    fill_rows(scratch.total, rows, gradient_columns, columns, 0.0f);
    fill_rows(scratch.bias_sums, 1, 0, rows, 0.0f);
    fill_rows(scratch.bias_total, 1, 0, rows, 0.0f);
    int64_t pending = 0, done = 0;
    const auto add_sums = [&] {
      add_rows(scratch.sums, rows, gradient_columns, columns, scratch.total);
      add_rows(scratch.bias_sums, 1, 0, rows, scratch.bias_total);
      fill_rows(scratch.bias_sums, 1, 0, rows, 0.0f);
      pending = 0;
    };
    for_each_stretch_of_head(problem.mask, head, 0, problem.tokens, [&](int64_t from, int64_t to, bool kept) {
      if (!kept) return;
      for (int64_t count; from < to; from += count) {
        count = min(min(to - from, pass_tokens), gradient_tokens - pending);
        LeftOperand left{scratch.left, 1, left_stride};
        for_each_piece(f, head, row, rows, [&](int64_t feature, int64_t first, int64_t width) {
          const RaggedRows<T> piece{of_features + from * f.count() + feature, f.count(), nullptr, width};
          pack_left_transposed<Product>(piece, count, left_stride, scratch.left + first);
          if (with_bias) add_tokens(piece, count, scratch.bias_piece, scratch.bias_sums + first);
        });
        pack_right<Product>(of_width.from(from), count, words<Product>(count), scratch.right);
        done += multiply<Product>(left, packed_panels(scratch.right, words<Product>(count)),
                                  {scratch.sums, gradient_columns}, rows, columns, words<Product>(count),
                                  pending > 0);
        pending += count;
        if (pending == gradient_tokens) add_sums();
      }
    });
    if (pending > 0) add_sums();
    for_each_piece(f, head, row, rows, [&](int64_t feature, int64_t first, int64_t width) {
      store_rows<T>(scratch.total + first * gradient_columns, gradient_columns, width, columns, nullptr,
                    nullptr, static_cast<T*>(problem.grad_weight) + feature * f.width + column, f.width);
      if (with_bias)
        store_rows<T>(scratch.bias_total + first, 0, 1, width, nullptr, nullptr,
                      static_cast<T*>(problem.grad_bias) + feature, 0);
    });
    count_multiply_adds(problem.multiply_adds, done);
  }
};

}  // namespace vleff::VLEFF_ISA

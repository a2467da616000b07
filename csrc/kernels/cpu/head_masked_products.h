#pragma once
#include "head_masked_rows.h"
#include "tasks.h"

// Forward of head_masked_linear: blocks of tokens times packed panels of the weight.
namespace vleff::VLEFF_ISA {

// Tokens of a block: their packed rows stay in the second-level cache while panels pass.
constexpr int64_t most_block_rows = 16 * tile_rows;
constexpr int64_t block_bytes = 384 * 1024;
// Columns of the result that are summed before they leave.
constexpr int64_t column_group = 256;

// How the work is cut. Neither changes a bit.
struct Blocks {
  int64_t rows;    // tokens of a block
  int64_t blocks;  // of tokens
  int64_t parts;   // of the heads (project) or of the columns (reduce)

  Blocks(int64_t tokens, int64_t row_words, int64_t most_parts, int64_t threads) {
    const int64_t fitting = block_bytes / (row_words * static_cast<int64_t>(sizeof(Word)));
    const int64_t most = max(tile_rows, min(most_block_rows, fitting / tile_rows * tile_rows));
    blocks = (tokens + most - 1) / most;
    rows = blocks ? round_up((tokens + blocks - 1) / blocks, tile_rows) : 0;
    // Enough tasks for even shares of very different samples.
    parts = blocks ? max(1, min(most_parts, (32 * threads + blocks - 1) / blocks)) : 1;
  }
};

// Adds what a worker multiplied to the problem's counter.
inline void count_multiply_adds(int64_t* counter, int64_t done) {
  if (counter) __atomic_fetch_add(counter, done, __ATOMIC_RELAXED);
}

template <class T, class Product>
struct HeadMaskedProducts {
  static int64_t elements_per_word() { return Product::elements_per_word; }

  // Words of depth that a head's features take where they are summed.
  static int64_t head_words(const HeadFeatures& features) { return words<Product>(features.head_dim); }

  static int64_t depth_words(const HeadMaskedWeight& weight) {
    return weight.direction == HeadMaskedDirection::project
               ? words<Product>(weight.features.width)
               : weight.features.heads * head_words(weight.features);
  }

  // project: for each head panels of its columns, all parts side by side. reduce: panels of the width.
  static int64_t panels_words(const HeadMaskedWeight& weight) {
    return weight.direction == HeadMaskedDirection::project
               ? panel_words(columns_of_head(weight.features), depth_words(weight))
               : panel_words(weight.features.width, depth_words(weight));
  }

  static int64_t packed_bytes(const HeadMaskedWeight& weight) {
    const bool by_head = weight.direction == HeadMaskedDirection::project;
    return (by_head ? weight.features.heads : 1) * panels_words(weight) * static_cast<int64_t>(sizeof(Word));
  }

  static void pack(const HeadMaskedWeight& weight, const HeadVectors& vectors, const HeadMask& mask,
                   void* packed, const Parallel& parallel) {
    Word* target = static_cast<Word*>(packed);
    for_each_task(parallel, weight.features.heads, [&](int64_t, int64_t head, int64_t) {
      if (!any_keeps(mask, head)) return;
      if (weight.direction == HeadMaskedDirection::project)
        pack_columns(weight, vectors, head, target + head * panels_words(weight));
      else
        pack_depth(weight, vectors, head, target + head * head_words(weight.features) * panel_width);
    });
  }

  static int64_t scratch_bytes(const HeadMaskedProblem& problem) {
    Arena arena(nullptr);
    Scratch(arena, problem);
    return arena.used();
  }

  static void run(const HeadMaskedProblem& problem, void* scratch, const Parallel& parallel) {
    const bool by_head = problem.weight.direction == HeadMaskedDirection::project;
    const HeadFeatures& features = problem.weight.features;
    const int64_t groups = (features.width + column_group - 1) / column_group;
    const Blocks blocks(problem.tokens, depth_words(problem.weight), by_head ? features.heads : groups,
                        parallel.threads);
    const int64_t bytes = scratch_bytes(problem);
    for_each_task(parallel, blocks.blocks * blocks.parts, [&](int64_t worker, int64_t task, int64_t) {
      Arena arena(static_cast<char*>(scratch) + worker * bytes);
      const Scratch buffers(arena, problem);
      const int64_t part = task / blocks.blocks, begin = task % blocks.blocks * blocks.rows;
      const int64_t end = min(problem.tokens, begin + blocks.rows);
      const auto piece = [&](int64_t all, int64_t number) { return all * number / blocks.parts; };
      count_multiply_adds(problem.multiply_adds,
                          by_head ? project(problem, buffers, begin, end, piece(features.heads, part),
                                            piece(features.heads, part + 1))
                                  : reduce(problem, buffers, begin, end, piece(groups, part) * column_group,
                                           min(features.width, piece(groups, part + 1) * column_group)));
    });
  }

 private:
  // Calls body(start, width) for the panels of the columns [column, column + count): all rows of a block pass
  // one panel before the next.
  template <class Body>
  static void for_each_panel(int64_t column, int64_t count, const Body& body) {
    for (int64_t start = column; start < column + count; start += panel_width)
      body(start, min(panel_width, column + count - start));
  }

  struct Scratch {
    int64_t row_stride;
    Word* rows;
    float* sums;

    Scratch(Arena& arena, const HeadMaskedProblem& problem) {
      row_stride = odd_stride(depth_words(problem.weight));
      rows = arena.take<Word>(min(round_up(problem.tokens, tile_rows), most_block_rows) * row_stride);
      sums = arena.take<float>(most_block_rows * column_group);
    }
  };

  // The columns of one head's features, `parts` times head_dim, over the whole width.
  static void pack_columns(const HeadMaskedWeight& weight, const HeadVectors& vectors, int64_t head,
                           Word* packed) {
    const HeadFeatures& f = weight.features;
    const int64_t depth = depth_words(weight);
    const T* data = static_cast<const T*>(vectors.data);
    for (int64_t column = 0; column < columns_of_head(f); column += lanes) {
      int32_t numbers[lanes];
      const int64_t count = min(lanes, columns_of_head(f) - column);
      for (int64_t i = 0; i < count; ++i)
        numbers[i] = static_cast<int32_t>(((column + i) / f.head_dim * f.heads + head) * f.head_dim +
                                          (column + i) % f.head_dim);
      Word* target = packed + column / panel_width * panel_width * depth + column % panel_width;
      if (vectors.width_stride == 1) {
        pack_transposed<Product>(RaggedRows<T>{data, vectors.feature_stride, numbers, f.width}, count, depth,
                                 target);
      } else {
        gather_right(data, vectors.width_stride, numbers, count, f.width, target);
      }
    }
  }

  // As pack_right, for up to `lanes` columns that stand at `numbers`.
  static void gather_right(const T* data, int64_t stride, const int32_t* numbers, int64_t count, int64_t rows,
                           Word* target) {
    const bool adjacent = numbers[count - 1] - numbers[0] == count - 1;
    for (int64_t word = 0; word < words<Product>(rows); ++word) {
      T columns[Product::elements_per_word * lanes] = {};
      RaggedRows<T> gathered{columns, lanes, nullptr, lanes};
      const int64_t first = word * Product::elements_per_word;
      const int64_t present = min(rows - first, Product::elements_per_word);
      if (adjacent) {
        gathered = {data + first * stride + numbers[0], stride, nullptr, count};
      } else {
        for (int64_t row = 0; row < present; ++row)
          for (int64_t i = 0; i < count; ++i)
            columns[row * lanes + i] = data[(first + row) * stride + numbers[i]];
      }
      store_raw(target + word * panel_width, load_depth_words<Product>(gathered, present, 0, 0));
    }
  }

  // One head's features as depth, over all columns of the width.
  static void pack_depth(const HeadMaskedWeight& weight, const HeadVectors& vectors, int64_t head,
                         Word* packed) {
    const HeadFeatures& f = weight.features;
    const T* data = static_cast<const T*>(vectors.data) + head * f.head_dim * vectors.feature_stride;
    const int64_t depth = depth_words(weight);
    if (vectors.feature_stride == 1)
      pack_transposed<Product>(RaggedRows<T>{data, vectors.width_stride, nullptr, f.head_dim}, f.width, depth,
                               packed);
    else
      pack_right<Product>(RaggedRows<T>{data, vectors.feature_stride, nullptr, f.width}, f.head_dim, depth,
                          packed);
  }

  // The heads [head, last_head) of the tokens [begin, end)
  static int64_t project(const HeadMaskedProblem& problem, const Scratch& scratch, int64_t begin, int64_t end,
                         int64_t head, int64_t last_head) {
    const HeadFeatures& f = problem.weight.features;
    const int64_t depth = depth_words(problem.weight), columns = columns_of_head(f);
    const RaggedRows<T> rows{static_cast<const T*>(problem.input), f.width, problem.index, f.width};
    pack_left<Product>(rows.from(begin), end - begin, scratch.row_stride, scratch.rows);
    int64_t done = 0;
    for (; head < last_head; ++head) {
      const Word* panels = static_cast<const Word*>(problem.packed) + head * panels_words(problem.weight);
      for (int64_t column = 0; column < columns; column += column_group) {
        const int64_t count = min(column_group, columns - column);
        for_each_depth_block(0, depth, [&](int64_t first, int64_t block) {
          for_each_panel(column, count, [&](int64_t start, int64_t width) {
            for_each_stretch_of_head(
                problem.mask, head, begin, end, [&](int64_t from, int64_t to, bool kept) {
                  if (!kept) return;
                  const int64_t row = from - begin;
                  done += multiply<Product>(
                      {scratch.rows + row * scratch.row_stride + first, scratch.row_stride, 1},
                      packed_panels(panels + start * depth, depth),
                      {scratch.sums + row * column_group + start - column, column_group}, to - from, width,
                      block, first > 0, first);
                });
          });
        });
        for_each_stretch_of_head(problem.mask, head, begin, end, [&](int64_t from, int64_t to, bool kept) {
          const float* sums = scratch.sums + (from - begin) * column_group;
          store_columns(problem, kept ? sums : nullptr, head, column, count, from, to);
        });
      }
    }
    return done;
  }

  // Columns [column, column + count) of a head: sums of the tokens [from, to) plus bias, or zeros.
  static void store_columns(const HeadMaskedProblem& problem, const float* sums, int64_t head, int64_t column,
                            int64_t count, int64_t from, int64_t to) {
    const HeadFeatures& f = problem.weight.features;
    const T* bias = static_cast<const T*>(problem.bias);
    for_each_piece(f, head, column, count, [&](int64_t feature, int64_t first, int64_t width) {
      T* out = static_cast<T*>(problem.out) + from * f.count() + feature;
      if (sums)
        store_rows<T>(sums + first, column_group, to - from, width, bias ? bias + feature : nullptr, nullptr,
                      out, f.count());
      else
        fill_rows(out, to - from, f.count(), width, 0.0f);
    });
  }

  // Columns [column, last_column) of the tokens [begin, end)
  static int64_t reduce(const HeadMaskedProblem& problem, const Scratch& scratch, int64_t begin, int64_t end,
                        int64_t column, int64_t last_column) {
    const HeadFeatures& f = problem.weight.features;
    const int64_t depth = depth_words(problem.weight), of_head = head_words(f);
    for (int64_t head = 0; head < f.heads; ++head) {
      const RaggedRows<T> rows{static_cast<const T*>(problem.input) + head * f.head_dim, f.count(), nullptr,
                               f.head_dim};
      for_each_stretch_of_head(problem.mask, head, begin, end, [&](int64_t from, int64_t to, bool kept) {
        if (kept)
          pack_left<Product>(rows.from(from), to - from, scratch.row_stride,
                             scratch.rows + (from - begin) * scratch.row_stride + head * of_head);
      });
    }
    int64_t done = 0;
    const T* bias = static_cast<const T*>(problem.bias);
    const T* residual = static_cast<const T*>(problem.residual);
    for (; column < last_column; column += column_group) {
      const int64_t count = min(column_group, last_column - column);
      const auto for_each_sample = [&](const auto& body) {
        const auto alike = [&](int64_t a, int64_t b) { return keep_the_same(problem.mask, a, b); };
        for_each_stretch(problem.mask, begin, end, alike, body);
      };
      for_each_panel(column, count, [&](int64_t start, int64_t width) {
        for_each_sample([&](int64_t from, int64_t to, int64_t sample) {
          const int64_t row = from - begin;
          done += sum_heads(problem, sample, {scratch.rows + row * scratch.row_stride, scratch.row_stride, 1},
                            packed_panels(static_cast<const Word*>(problem.packed) + start * depth, depth),
                            scratch.sums + row * column_group + start - column, to - from, width);
        });
      });
      const int64_t corner = begin * f.width + column;
      store_rows<T>(scratch.sums, column_group, end - begin, count, bias ? bias + column : nullptr,
                    residual ? residual + corner : nullptr, static_cast<T*>(problem.out) + corner, f.width);
    }
    return done;
  }

  // The heads that a sample keeps, neighbours together.
  static int64_t sum_heads(const HeadMaskedProblem& problem, int64_t sample, LeftOperand left, Panels right,
                           float* sums, int64_t rows, int64_t columns) {
    const int64_t of_head = head_words(problem.weight.features), heads = problem.weight.features.heads;
    int64_t done = 0;
    bool accumulate = false;
    for (int64_t head = 0, next; head < heads; head = next) {
      next = head + 1;
      if (!keeps(problem.mask, sample, head)) continue;
      while (next < heads && keeps(problem.mask, sample, next)) ++next;
      for_each_depth_block(head * of_head, (next - head) * of_head, [&](int64_t first, int64_t block) {
        done += multiply<Product>({left.data + first, left.row_stride, 1}, right, {sums, column_group}, rows,
                                  columns, block, accumulate, first);
        accumulate = true;
      });
    }
    if (!accumulate) fill_rows(sums, rows, column_group, round_up(columns, lanes), 0.0f);
    return done;
  }
};

}  // namespace vleff::VLEFF_ISA

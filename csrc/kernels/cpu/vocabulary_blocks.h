#pragma once
#include "attention_common.h"
#include "element_types.h"
#include "vocabulary_log_probs.h"

// The logits of a vocabulary, block by block. Words are divided into blocks and rows into chunks. The logits
// of a block's words and a chunk's rows are one tile, which stays in L2 until all is done with it. Tiles hold
// a word a line: the rows of `hidden` lie along the lanes, so sums over words need no reduction over lanes,
// and the weight is read where it stands.
namespace vleff::VLEFF_ISA {

constexpr int64_t word_block = 20 * tile_rows;  // even: bfloat16 pairs of words never straddle two blocks
constexpr int64_t row_chunk = 256;              // a multiple of every panel_width

struct Sizes {
  int64_t rows, width, words, blocks, chunks, tile_stride;

  explicit Sizes(const VocabularyProblem& problem)
      : rows(problem.rows),
        width(problem.width),
        words(problem.words),
        blocks((words + word_block - 1) / word_block),
        chunks((rows + row_chunk - 1) / row_chunk),
        tile_stride(logits_stride(min(row_chunk, rows))) {}

  int64_t padded_rows() const { return round_up(rows, row_chunk); }
  int64_t words_of(int64_t block) const { return min(word_block, words - block * word_block); }
  int64_t rows_of(int64_t chunk) const { return min(row_chunk, rows - chunk * row_chunk); }
};

template <class T>
RaggedRows<T> matrix(const void* data, int64_t width, int64_t first_row) {
  return {static_cast<const T*>(data) + first_row * width, width, nullptr, width};
}

// `hidden` as the right operand of the products with words, shared by all workers.
template <class T, class Product>
struct HiddenPanels {
  const VocabularyProblem& problem;
  int64_t depth;
  Word* panels;

  HiddenPanels(Arena& arena, const VocabularyProblem& p)
      : problem(p),
        depth(words<Product>(p.width)),
        panels(arena.take<Word>(panel_words(round_up(p.rows, row_chunk), depth))) {}

  void pack(int64_t first_row, int64_t count) const {
    pack_transposed<Product>(matrix<T>(problem.hidden, problem.width, first_row), count, depth,
                             of(first_row));
  }
  Word* of(int64_t first_row) const { return panels + first_row * depth; }
};

// One worker's block of words and tile.
template <class T, class Product>
struct BlockScratch {
  Word* weights;  // left operand
  float* bias;    // [word_block]
  float* tile;    // [word_block, tile_stride]

  BlockScratch(Arena& arena, const Sizes& sizes)
      : weights(arena.take<Word>(word_block * words<Product>(sizes.width))),
        bias(arena.take<float>(word_block)),
        tile(arena.take<float>(word_block * sizes.tile_stride)) {}

  LeftOperand start(const VocabularyProblem& problem, int64_t first_word, int64_t count) const {
    for (int64_t word = 0; word < count; ++word) bias[word] = 0.0f;
    if (problem.bias) {
      const T* source = static_cast<const T*>(problem.bias) + first_word;
      for (int64_t word = 0; word < count; word += lanes)
        store_first(bias + word, load_first(source + word, count - word), count - word);
    }
    return left_operand<Product>(matrix<T>(problem.weight, problem.width, first_word), count, weights);
  }
};

// Calls body(row, logits of the vector of rows from `row` on) for a word's line of the tile.
template <class Body>
void for_each_logit(const float* line, float bias, int64_t rows, const Body& body) {
  for (int64_t row = 0; row < rows; row += lanes) body(row, load(line + row) + bias);
}

// The softmax of each row, from that of each block of its words.
struct BlockStatistics {
  // [blocks, padded rows]: of a block's logits times log2(e), and of 2 ** (logit * log2(e) - maximum).
  float *maxima, *sums;

  BlockStatistics(Arena& arena, const Sizes& sizes)
      : maxima(arena.take<float>(sizes.blocks * sizes.padded_rows())),
        sums(arena.take<float>(sizes.blocks * sizes.padded_rows())) {}

  // Of a tile whose first row is `first_row`.
  void add(const Sizes& sizes, int64_t block, int64_t first_row, int64_t rows, int64_t words,
           const float* tile, const float* bias) const {
    float* maximum_of = maxima + block * sizes.padded_rows() + first_row;
    float* sum_of = sums + block * sizes.padded_rows() + first_row;
    fill_rows(maximum_of, 1, 0, round_up(rows, lanes), -infinity);
    fill_rows(sum_of, 1, 0, round_up(rows, lanes), 0.0f);
    for (int64_t word = 0; word < words; ++word)
      for_each_logit(tile + word * sizes.tile_stride, bias[word], rows, [&](int64_t row, Float logits) {
        store(maximum_of + row, maximum(load(maximum_of + row), logits));
      });
    for (int64_t row = 0; row < rows; row += lanes)
      store(maximum_of + row, load(maximum_of + row) * log2_of_e);
    for (int64_t word = 0; word < words; ++word)
      for_each_logit(tile + word * sizes.tile_stride, bias[word], rows, [&](int64_t row, Float logits) {
        store(sum_of + row, load(sum_of + row) + exp2(logits * log2_of_e - load(maximum_of + row)));
      });
  }

  // Maximum and sum of the vector of rows from `row` on, blocks in order.
  void combine(const Sizes& sizes, int64_t row, Float& largest, Float& sum) const {
    const auto at = [&](const float* values, int64_t block) {
      return load(values + block * sizes.padded_rows() + row);
    };
    largest = broadcast(-infinity);
    sum = Float{};
    for (int64_t block = 0; block < sizes.blocks; ++block) largest = maximum(largest, at(maxima, block));
    for (int64_t block = 0; block < sizes.blocks; ++block)
      sum += at(sums, block) * exp2(at(maxima, block) - largest);
  }
};

}  // namespace vleff::VLEFF_ISA

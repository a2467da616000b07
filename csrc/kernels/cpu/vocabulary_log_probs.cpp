#include "vocabulary_log_probs.h"

#include "gradient_blocks.h"
#include "vocabulary_blocks.h"

namespace vleff::VLEFF_ISA {
namespace {

// The gradient of `hidden` is summed over words in so many parts, which are added in order: at any number of
// threads the same.
constexpr int64_t most_parts = 16;

template <class T, class Product>
struct Forward {
  struct Statistics {
    BlockStatistics blocks;
    float* target_logits;  // [padded rows]

    Statistics(Arena& arena, const Sizes& sizes)
        : blocks(arena, sizes), target_logits(arena.take<float>(sizes.padded_rows())) {}
  };

  static int64_t scratch_bytes(const VocabularyProblem& problem, int64_t threads) {
    const Sizes sizes(problem);
    Arena shared(nullptr), own(nullptr);
    HiddenPanels<T, Product>(shared, problem);
    Statistics(shared, sizes);
    BlockScratch<T, Product>(own, sizes);
    return shared.used() + threads * own.used();
  }

  static void run(const VocabularyProblem& problem, const VocabularyOutput& output, void* scratch,
                  const Parallel& parallel) {
    const Sizes sizes(problem);
    Arena arena(scratch);
    const HiddenPanels<T, Product> hidden(arena, problem);
    const Statistics statistics(arena, sizes);
    char* workers = static_cast<char*>(scratch) + arena.used();
    for_each_task(parallel, sizes.chunks, [&](int64_t, int64_t chunk, int64_t) {
      hidden.pack(chunk * row_chunk, sizes.rows_of(chunk));
    });
    Arena size(nullptr);
    BlockScratch<T, Product>(size, sizes);
    for_each_task(parallel, sizes.blocks, [&](int64_t worker, int64_t block, int64_t) {
      Arena own(workers + worker * size.used());
      sum_block(problem, sizes, hidden, statistics, block, BlockScratch<T, Product>(own, sizes));
    });
    for_each_task(parallel, sizes.chunks, [&](int64_t, int64_t chunk, int64_t) {
      combine(problem, output, sizes, statistics, chunk);
    });
  }

  static void sum_block(const VocabularyProblem& problem, const Sizes& sizes,
                        const HiddenPanels<T, Product>& hidden, const Statistics& statistics, int64_t block,
                        const BlockScratch<T, Product>& scratch) {
    const int64_t first_word = block * word_block, count = sizes.words_of(block);
    const LeftOperand weights = scratch.start(problem, first_word, count);
    for (int64_t chunk = 0; chunk < sizes.chunks; ++chunk) {
      const int64_t first_row = chunk * row_chunk, rows = sizes.rows_of(chunk);
      multiply<Product>(weights, packed_panels(hidden.of(first_row), hidden.depth),
                        {scratch.tile, sizes.tile_stride}, count, rows, hidden.depth, false);
      statistics.blocks.add(sizes, block, first_row, rows, count, scratch.tile, scratch.bias);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t word = problem.targets[first_row + row] - first_word;
        if (word >= 0 && word < count)
          statistics.target_logits[first_row + row] =
              scratch.tile[word * sizes.tile_stride + row] + scratch.bias[word];
      }
    }
  }

  static void combine(const VocabularyProblem& problem, const VocabularyOutput& output, const Sizes& sizes,
                      const Statistics& statistics, int64_t chunk) {
    const int64_t end = chunk * row_chunk + sizes.rows_of(chunk);
    for (int64_t row = chunk * row_chunk; row < end; row += lanes) {
      Float largest, sum;
      statistics.blocks.combine(sizes, row, largest, sum);
      for (int64_t lane = 0; lane < min(lanes, end - row); ++lane) {
        output.statistics[row + lane] = {largest[lane], sum[lane]};
        output.log_probs[row + lane] = problem.targets[row + lane] < 0
                                           ? -infinity
                                           : (statistics.target_logits[row + lane] * log2_of_e -
                                              largest[lane] - __builtin_log2f(sum[lane])) *
                                                 ln_of_2;
      }
    }
  }
};

template <class T, class Product>
struct Backward {
  // Shared by all workers.
  struct Rows {
    HiddenPanels<T, Product> hidden;
    Word* hidden_right;  // right operand of the gradient of the weight: for each chunk its own panels
    // [padded rows]: gradients, the same divided by the sums, and maxima of the softmax; 0, 0 and inf where a
    // row has no word and beyond the last row.
    float *grads, *factors, *maxima;
    float* parts;  // [parts, rows, width rounded up to lanes]: sums of the gradient of `hidden`

    Rows(Arena& arena, const VocabularyProblem& problem, const Sizes& sizes)
        : hidden(arena, problem),
          hidden_right(arena.take<Word>(sizes.chunks * right_words(sizes))),
          grads(arena.take<float>(sizes.padded_rows())),
          factors(arena.take<float>(sizes.padded_rows())),
          maxima(arena.take<float>(sizes.padded_rows())),
          parts(arena.take<float>(part_count(sizes) * part_size(sizes))) {}

    static int64_t right_words(const Sizes& sizes) {
      return panel_words(sizes.width, words<Product>(row_chunk));
    }
    static int64_t part_count(const Sizes& sizes) { return min(most_parts, sizes.blocks); }
    static int64_t part_size(const Sizes& sizes) { return sizes.rows * round_up(sizes.width, lanes); }
  };

  // One worker's.
  struct Own {
    BlockScratch<T, Product> block;
    Word *weights_right, *pairs;     // right operand; pairs of a tile's words
    float *grad_weight, *grad_bias;  // [word_block, width rounded up to lanes], [word_block]

    Own(Arena& arena, const Sizes& sizes)
        : block(arena, sizes),
          weights_right(arena.take<Word>(panel_words(sizes.width, words<Product>(word_block)))),
          pairs(arena.take<Word>(Product::elements_per_word == 2 ? word_block / 2 * sizes.tile_stride : 0)),
          grad_weight(arena.take<float>(word_block * round_up(sizes.width, lanes))),
          grad_bias(arena.take<float>(word_block)) {}
  };

  static int64_t scratch_bytes(const VocabularyProblem& problem, int64_t threads) {
    const Sizes sizes(problem);
    Arena shared(nullptr), own(nullptr);
    Rows(shared, problem, sizes);
    Own(own, sizes);
    return shared.used() + threads * own.used();
  }

  static void run(const VocabularyProblem& problem, const VocabularyGradient& gradient, void* scratch,
                  const Parallel& parallel) {
    const Sizes sizes(problem);
    if (sizes.rows == 0) {
      fill_rows(static_cast<T*>(gradient.grad_weight), sizes.words, sizes.width, sizes.width, 0.0f);
      if (gradient.grad_bias) fill_rows(static_cast<T*>(gradient.grad_bias), 1, 0, sizes.words, 0.0f);
      return;
    }
    Arena arena(scratch);
    const Rows rows(arena, problem, sizes);
    char* workers = static_cast<char*>(scratch) + arena.used();
    for_each_task(parallel, sizes.chunks,
                  [&](int64_t, int64_t chunk, int64_t) { prepare(problem, gradient, sizes, rows, chunk); });
    Arena size(nullptr);
    Own(size, sizes);
    const int64_t parts = Rows::part_count(sizes);
    for_each_task(parallel, parts, [&](int64_t worker, int64_t part, int64_t) {
      Arena memory(workers + worker * size.used());
      const Own own(memory, sizes);
      const int64_t begin = sizes.blocks * part / parts, end = sizes.blocks * (part + 1) / parts;
      float* grad_hidden = rows.parts + part * Rows::part_size(sizes);
      for (int64_t block = begin; block < end; ++block)
        differentiate(problem, gradient, sizes, rows, own, block, grad_hidden, block > begin);
    });
    for_each_task(parallel, sizes.chunks,
                  [&](int64_t, int64_t chunk, int64_t) { add_parts(gradient, sizes, rows, chunk); });
  }

  static void prepare(const VocabularyProblem& problem, const VocabularyGradient& gradient,
                      const Sizes& sizes, const Rows& rows, int64_t chunk) {
    const int64_t first_row = chunk * row_chunk, count = sizes.rows_of(chunk);
    rows.hidden.pack(first_row, count);
    pack_right<Product>(matrix<T>(problem.hidden, sizes.width, first_row), count, words<Product>(row_chunk),
                        rows.hidden_right + chunk * Rows::right_words(sizes));
    for (int64_t row = first_row; row < first_row + row_chunk; ++row) {
      const bool has_word = row < sizes.rows && problem.targets[row] >= 0;
      rows.grads[row] = has_word ? gradient.grad_log_probs[row] : 0.0f;
      rows.factors[row] = has_word ? gradient.grad_log_probs[row] / gradient.statistics[row].sum : 0.0f;
      rows.maxima[row] = has_word ? gradient.statistics[row].maximum : infinity;
    }
  }

  static void differentiate(const VocabularyProblem& problem, const VocabularyGradient& gradient,
                            const Sizes& sizes, const Rows& rows, const Own& own, int64_t block,
                            float* grad_hidden, bool accumulate) {
    const int64_t first_word = block * word_block, count = sizes.words_of(block);
    const int64_t width = round_up(sizes.width, lanes), depth = rows.hidden.depth, stride = sizes.tile_stride;
    const int64_t word_words = words<Product>(word_block), row_words = words<Product>(row_chunk);
    const LeftOperand weights = own.block.start(problem, first_word, count);
    pack_right<Product>(matrix<T>(problem.weight, sizes.width, first_word), count, word_words,
                        own.weights_right);
    fill_rows(own.grad_bias, 1, 0, word_block, 0.0f);
    float* tile = own.block.tile;
    for (int64_t chunk = 0; chunk < sizes.chunks; ++chunk) {
      const int64_t first_row = chunk * row_chunk, chunk_rows = sizes.rows_of(chunk);
      multiply<Product>(weights, packed_panels(rows.hidden.of(first_row), depth), {tile, stride}, count,
                        chunk_rows, depth, false);
      for (int64_t word = 0; word < count; ++word) {
        Float sum{};
        float* line = tile + word * stride;
        for_each_logit(line, own.block.bias[word], chunk_rows, [&](int64_t row, Float logits) {
          Float grad = -load(rows.factors + first_row + row) *
                       exp2(logits * log2_of_e - load(rows.maxima + first_row + row));
          store(line + row, grad);
          sum += grad;
        });
        own.grad_bias[word] += reduce_add(sum);
      }
      for (int64_t row = 0; row < chunk_rows; ++row) {
        const int64_t word = problem.targets[first_row + row] - first_word;
        if (word < 0 || word >= count) continue;
        tile[word * stride + row] += rows.grads[first_row + row];
        own.grad_bias[word] += rows.grads[first_row + row];
      }
      const Word* lines = reinterpret_cast<const Word*>(tile);
      const Word* columns = lines;
      if constexpr (Product::elements_per_word == 2) {
        pair_rows<T>(tile, count, stride, round_up(chunk_rows, lanes), own.pairs);
        columns = own.pairs;
      }
      multiply<Product>({lines, stride, 1},
                        packed_panels(rows.hidden_right + chunk * Rows::right_words(sizes), row_words),
                        {own.grad_weight, width}, count, sizes.width, words<Product>(chunk_rows), chunk > 0);
      multiply<Product>({columns, 1, stride}, packed_panels(own.weights_right, word_words),
                        {grad_hidden + first_row * width, width}, chunk_rows, sizes.width,
                        words<Product>(count), accumulate);
    }
    store_gradient(own.grad_weight, count, sizes.width, 1.0f,
                   static_cast<T*>(gradient.grad_weight) + first_word * sizes.width, sizes.width);
    if (gradient.grad_bias)
      store_gradient(own.grad_bias, 1, count, 1.0f, static_cast<T*>(gradient.grad_bias) + first_word, 0);
  }

  static void add_parts(const VocabularyGradient& gradient, const Sizes& sizes, const Rows& rows,
                        int64_t chunk) {
    const int64_t width = round_up(sizes.width, lanes), first_row = chunk * row_chunk;
    float* sums = rows.parts + first_row * width;
    const int64_t count = sizes.rows_of(chunk);
    for (int64_t part = 1; part < Rows::part_count(sizes); ++part)
      for (int64_t element = 0; element < count * width; element += lanes)
        store(sums + element, load(sums + element) + load(sums + part * Rows::part_size(sizes) + element));
    store_gradient(sums, count, sizes.width, 1.0f,
                   static_cast<T*>(gradient.grad_hidden) + first_row * sizes.width, sizes.width);
  }
};

template <template <class, class> class Pass>
int64_t scratch_bytes(const VocabularyProblem& problem, int64_t threads) {
  return with_type<Pass>(problem.type, [&](auto pass) { return pass.scratch_bytes(problem, threads); });
}

template <template <class, class> class Pass, class Arguments>
void run(const VocabularyProblem& problem, const Arguments& arguments, void* scratch,
         const Parallel& parallel) {
  with_type<Pass>(problem.type, [&](auto pass) { pass.run(problem, arguments, scratch, parallel); });
}

}  // namespace

extern const VocabularyLogProbsKernels vocabulary_log_probs_kernels = {
    scratch_bytes<Forward>, run<Forward, VocabularyOutput>, scratch_bytes<Backward>,
    run<Backward, VocabularyGradient>};

}  // namespace vleff::VLEFF_ISA

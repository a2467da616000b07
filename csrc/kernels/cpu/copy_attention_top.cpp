#include "copy_attention_top.h"

#include "copy_attention_rows.h"
#include "largest_words.h"
#include "vocabulary_blocks.h"

// First the vocabulary: blocks of words as in vocabulary_log_probs, of which each worker keeps the largest
// logits of each row. Then the rows: what is copied makes words more likely and none less, so the likeliest
// words are among those with the largest logits and those that are copied.
namespace vleff::VLEFF_ISA {
namespace {

template <class T, class Product>
struct TopPass {
  // One worker's largest logits of all rows.
  struct Largest {
    int64_t count;
    float* least;   // [padded rows], infinite beyond the last row
    float* values;  // [rows, count]
    int32_t* words;

    Largest(Arena& arena, const CopyTopProblem& problem, const Sizes& sizes)
        : count(problem.count),
          least(arena.take<float>(sizes.padded_rows())),
          values(arena.take<float>(sizes.rows * count)),
          words(arena.take<int32_t>(sizes.rows * count)) {}

    LargestWords<int32_t> of(int64_t row) const { return {values + row * count, words + row * count, count}; }

    void clear(const Sizes& sizes) const {
      fill_rows(least, 1, 0, sizes.padded_rows(), infinity);
      for (int64_t row = 0; row < sizes.rows; ++row) {
        of(row).clear();
        least[row] = of(row).least();
      }
    }

    void add_tile(const Sizes& sizes, int64_t first_word, int64_t words_of_tile, int64_t first_row,
                  int64_t rows, const float* tile, const float* bias) const {
      for (int64_t word = 0; word < words_of_tile; ++word)
        for_each_logit(tile + word * sizes.tile_stride, bias[word], rows, [&](int64_t row, Float logits) {
          if (!any_above(logits, load(least + first_row + row))) return;
          for (int64_t lane = 0; lane < min(lanes, rows - row); ++lane) {
            const int64_t number = first_row + row + lane;
            if (!(logits[lane] > least[number])) continue;
            of(number).add(logits[lane], first_word + word);
            least[number] = of(number).least();
          }
        });
    }
  };

  // Memory of one worker.
  struct Own {
    BlockScratch<T, Product> block;
    Largest largest;
    float* products;   // [longest source]
    float* copied;     // [extended words], log-probabilities of copying a word; -inf between rows
    int32_t* touched;  // [positions of both sources], words that are copied
    float* merged;     // [count] and their words
    int32_t* merged_words;

    Own(Arena& arena, const CopyTopProblem& problem, const Sizes& sizes)
        : block(arena, sizes),
          largest(arena, problem, sizes),
          products(arena.take<float>(
              round_up(max(problem.copy.sources[0].longest, problem.copy.sources[1].longest), lanes))),
          copied(arena.take<float>(problem.extended_words)),
          touched(arena.take<int32_t>(problem.copy.sources[0].longest + problem.copy.sources[1].longest)),
          merged(arena.take<float>(problem.count)),
          merged_words(arena.take<int32_t>(problem.count)) {}
  };

  struct Shared {
    HiddenPanels<T, Product> hidden;
    BlockStatistics statistics;
    float* log_sums;  // [padded rows]: natural logarithms

    Shared(Arena& arena, const CopyTopProblem& problem, const Sizes& sizes)
        : hidden(arena, problem.vocabulary),
          statistics(arena, sizes),
          log_sums(arena.take<float>(sizes.padded_rows())) {}
  };

  static int64_t scratch_bytes(const CopyTopProblem& problem, int64_t threads) {
    const Sizes sizes(problem.vocabulary);
    Arena shared(nullptr), own(nullptr);
    Shared(shared, problem, sizes);
    Own(own, problem, sizes);
    return shared.used() + threads * own.used();
  }

  static void run(const CopyTopProblem& problem, const CopyTopOutput& output, void* scratch,
                  const Parallel& parallel) {
    const Sizes sizes(problem.vocabulary);
    Arena arena(scratch), size(nullptr);
    const Shared shared(arena, problem, sizes);
    Own(size, problem, sizes);
    char* workers = static_cast<char*>(scratch) + arena.used();
    const auto own_of = [&](int64_t worker) {
      Arena memory(workers + worker * size.used());
      return Own(memory, problem, sizes);
    };
    for_each_task(parallel, sizes.chunks, [&](int64_t, int64_t chunk, int64_t) {
      shared.hidden.pack(chunk * row_chunk, sizes.rows_of(chunk));
    });
    for_each_task(parallel, parallel.threads, [&](int64_t, int64_t worker, int64_t) {
      const Own own = own_of(worker);
      own.largest.clear(sizes);
      fill_rows(own.copied, 1, 0, problem.extended_words, -infinity);
    });
    for_each_task(parallel, sizes.blocks, [&](int64_t worker, int64_t block, int64_t) {
      multiply_block(problem, sizes, shared, own_of(worker), block);
    });
    for_each_task(parallel, sizes.chunks, [&](int64_t, int64_t chunk, int64_t) {
      const int64_t end = chunk * row_chunk + sizes.rows_of(chunk);
      for (int64_t row = chunk * row_chunk; row < end; row += lanes) {
        Float largest, sum;
        shared.statistics.combine(sizes, row, largest, sum);
        for (int64_t lane = 0; lane < lanes; ++lane)
          shared.log_sums[row + lane] = (largest[lane] + __builtin_log2f(sum[lane])) * ln_of_2;
      }
    });
    for_each_task(parallel, sizes.rows, [&](int64_t worker, int64_t row, int64_t) {
      const Own own = own_of(worker);
      const LargestWords<int32_t> merged{own.merged, own.merged_words, problem.count};
      merged.clear();
      for (int64_t other = 0; other < parallel.threads; ++other) {
        const LargestWords<int32_t> largest = own_of(other).largest.of(row);
        for (int64_t place = 0; place < problem.count; ++place)
          merged.add(largest.values[place], largest.words[place]);
      }
      finish(problem, output, own, merged, shared.log_sums[row], row);
    });
  }

  static void multiply_block(const CopyTopProblem& problem, const Sizes& sizes, const Shared& shared,
                             const Own& own, int64_t block) {
    const int64_t first_word = block * word_block, count = sizes.words_of(block);
    const LeftOperand weights = own.block.start(problem.vocabulary, first_word, count);
    for (int64_t chunk = 0; chunk < sizes.chunks; ++chunk) {
      const int64_t first_row = chunk * row_chunk, rows = sizes.rows_of(chunk);
      multiply<Product>(weights, packed_panels(shared.hidden.of(first_row), shared.hidden.depth),
                        {own.block.tile, sizes.tile_stride}, count, rows, shared.hidden.depth, false);
      shared.statistics.add(sizes, block, first_row, rows, count, own.block.tile, own.block.bias);
      own.largest.add_tile(sizes, first_word, count, first_row, rows, own.block.tile, own.block.bias);
    }
  }

  // Copies, and puts the likeliest words of a row in order.
  static void finish(const CopyTopProblem& problem, const CopyTopOutput& output, const Own& own,
                     const LargestWords<int32_t>& generated, float log_sum, int64_t row) {
    const CopyProblem& copy = problem.copy;
    const int64_t sample = sample_of(copy.query_offsets, copy.batch, row);
    const SourceRows<T> sources[copy_sources] = {SourceRows<T>(copy, 0, sample),
                                                 SourceRows<T>(copy, 1, sample)};
    const LogGate gate = log_gate<T>(copy, row, {sources[0].count > 0, sources[1].count > 0});
    const float shift = gate.of[0] - log_sum;
    int64_t touched = 0;
    for (int number = 0; number < copy_sources; ++number)
      touched = attend(problem, sources[number], row, gate.of[number + 1], own, touched);

    const LargestWords<int64_t> top{output.log_probs + row * problem.count,
                                    output.words + row * problem.count, problem.count};
    top.clear();
    for (int64_t place = 0; place < problem.count; ++place) {
      const int32_t word = generated.words[place];
      if (own.copied[word] == -infinity) top.add(generated.values[place] + shift, word);
    }
    const auto log_prob = [&](int64_t word) {
      if (word >= problem.vocabulary.words) return own.copied[word];
      return log_add(own.copied[word], logit(problem.vocabulary, row, word) + shift);
    };
    output.watched_log_prob[row] = log_prob(problem.watched);
    for (int64_t number = 0; number < touched; ++number) {
      const int32_t word = own.touched[number];
      top.add(log_prob(word), word);
    }
    for (int64_t number = 0; number < touched; ++number) own.copied[own.touched[number]] = -infinity;
  }

  // Adds what a source says of words; returns how many are copied by now.
  static int64_t attend(const CopyTopProblem& problem, const SourceRows<T>& source, int64_t row,
                        float log_gate, const Own& own, int64_t touched) {
    if (source.count == 0) return touched;
    const CopyProblem& copy = problem.copy;
    const T* query = static_cast<const T*>(copy.queries) + row * copy.width;
    const float scale = copy.scale * log2_of_e;
    for (int64_t position = 0; position < source.count; ++position)
      own.products[position] = dot(query, source.keys[position], copy.width);
    const float lse = base_two_log_sum(source.count, [&](int64_t position) {
      return base_two_logits<false>(own.products, nullptr, position, source.count, scale);
    });
    for (int64_t position = 0; position < source.count; ++position) {
      const float value = log_gate + (own.products[position] * scale - lse) * ln_of_2;
      if (!(value > -infinity)) continue;
      float& word = own.copied[source.ids[position]];
      if (word == -infinity) {
        own.touched[touched++] = source.ids[position];
        prefetch_row(weight_rows(problem.vocabulary), source.ids[position], problem.vocabulary.words);
      }
      word = log_add(word, value);
    }
    return touched;
  }

  static RaggedRows<T> weight_rows(const VocabularyProblem& vocabulary) {
    return matrix<T>(vocabulary.weight, vocabulary.width, 0);
  }

  static float logit(const VocabularyProblem& vocabulary, int64_t row, int64_t word) {
    const int64_t width = vocabulary.width;
    const float product =
        dot(static_cast<const T*>(vocabulary.hidden) + row * width, weight_rows(vocabulary)[word], width);
    return vocabulary.bias ? product + load_first(static_cast<const T*>(vocabulary.bias) + word, 1)[0]
                           : product;
  }
};

int64_t scratch_bytes(const CopyTopProblem& problem, int64_t threads) {
  return with_type<TopPass>(problem.copy.type,
                            [&](auto pass) { return pass.scratch_bytes(problem, threads); });
}

void run(const CopyTopProblem& problem, const CopyTopOutput& output, void* scratch,
         const Parallel& parallel) {
  with_type<TopPass>(problem.copy.type, [&](auto pass) { pass.run(problem, output, scratch, parallel); });
}

}  // namespace

extern const CopyAttentionTopKernels copy_attention_top_kernels = {scratch_bytes, run};

}  // namespace vleff::VLEFF_ISA

#pragma once
#include "copy_attention_common.h"
#include "row_sums.h"

// copy_attention of all words. A task is a row: keys are read where they stand, as a sample has few rows.
namespace vleff::VLEFF_ISA {

// log2 of the sum of 2 ** logits
template <class Logits>
float base_two_log_sum(int64_t count, const Logits& logits) {
  Float largest = broadcast(-infinity), sum{};
  for (int64_t i = 0; i < count; i += lanes) largest = maximum(largest, logits(i));
  const float top = reduce_maximum(largest);
  for (int64_t i = 0; i < count; i += lanes) sum += exp2(logits(i) - top);
  return top + __builtin_log2f(reduce_add(sum));
}

template <class T>
struct CopyRowsPass {
  static int64_t scratch_bytes(const CopyProblem& problem) {
    const int64_t longest = max(problem.sources[0].longest, problem.sources[1].longest);
    return round_up(round_up(longest, lanes) * static_cast<int64_t>(sizeof(float)), 64);
  }

  static void run(const CopyProblem& problem, const CopyRows& rows, void* scratch, const Parallel& parallel) {
    const int64_t bytes = scratch_bytes(problem);
    for_each_task(parallel, problem.query_offsets[problem.batch], [&](int64_t worker, int64_t row, int64_t) {
      write(problem, rows, row, reinterpret_cast<float*>(static_cast<char*>(scratch) + worker * bytes));
    });
  }

  static void write(const CopyProblem& problem, const CopyRows& rows, int64_t row, float* products) {
    const int64_t sample = sample_of(problem.query_offsets, problem.batch, row);
    const SourceRows<T> sources[copy_sources] = {SourceRows<T>(problem, 0, sample),
                                                 SourceRows<T>(problem, 1, sample)};
    const LogGate gate = log_gate<T>(problem, row, {sources[0].count > 0, sources[1].count > 0});
    float* log_probs = rows.log_probs + row * rows.extended_words;
    generate(static_cast<const T*>(rows.vocabulary_logits) + row * rows.words, rows, gate.of[0], log_probs);

    const T* query = static_cast<const T*>(problem.queries) + row * problem.width;
    for (int number = 0; number < copy_sources; ++number) {
      const SourceRows<T>& source = sources[number];
      if (source.count == 0) continue;
      const float scale = problem.scale * log2_of_e;
      for (int64_t position = 0; position < source.count; ++position)
        products[position] = dot(query, source.keys[position], problem.width);
      const float lse = base_two_log_sum(source.count, [&](int64_t position) {
        return base_two_logits<false>(products, nullptr, position, source.count, scale);
      });
      for (int64_t position = 0; position < source.count; ++position) {
        float& word = log_probs[source.ids[position]];
        word = log_add(word, gate.of[number + 1] + (products[position] * scale - lse) * ln_of_2);
      }
    }
  }

  static void generate(const T* logits, const CopyRows& rows, float log_gate, float* log_probs) {
    const auto base_two = [&](int64_t word) {
      Float values = load_first(logits + word, rows.words - word) * log2_of_e;
      if (word + lanes <= rows.words) return values;
      UInt numbers = lane_numbers() + static_cast<uint32_t>(word);
      return numbers < static_cast<uint32_t>(rows.words) ? values : broadcast(-infinity);
    };
    const float shift = log_gate - base_two_log_sum(rows.words, base_two) * ln_of_2;
    for (int64_t word = 0; word < rows.words; word += lanes)
      store_first(log_probs + word, load_first(logits + word, rows.words - word) + shift, rows.words - word);
    const int64_t others = rows.extended_words - rows.words;
    fill_rows(log_probs + rows.words, 1, 0, others, -infinity);
  }
};

}  // namespace vleff::VLEFF_ISA

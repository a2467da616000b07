#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"
#include "softmax_statistics.h"

namespace vleff {

// Log-probabilities of one word a row:
//   logits(t, w) = <hidden_t, weight_w> + bias_w
//   log_probs(t) = logits(t, targets_t) - log sum_w exp(logits(t, w))
struct VocabularyProblem {
  DataType type;
  int64_t rows, width, words;  // words and width at least 1
  const void* hidden;          // [rows, width]
  const void* weight;          // [words, width]
  const void* bias;            // [words] or null
  const int32_t* targets;      // [rows], below words; -1 for a word that is not among them
};

// Rows without a word: log_probs -inf.
struct VocabularyOutput {
  float* log_probs;               // [rows]
  SoftmaxStatistics* statistics;  // [rows]
};

struct VocabularyGradient {
  const float* grad_log_probs;          // [rows]
  const SoftmaxStatistics* statistics;  // [rows], as forward made them
  void* grad_hidden;                    // [rows, width], the problem's type
  void* grad_weight;                    // [words, width], the problem's type
  void* grad_bias;                      // [words], the problem's type, or null
};

// scratch: 64-byte aligned, scratch_bytes(problem, parallel.threads) bytes.
struct VocabularyLogProbsKernels {
  int64_t (*forward_scratch_bytes)(const VocabularyProblem&, int64_t threads);
  void (*forward)(const VocabularyProblem&, const VocabularyOutput&, void* scratch, const Parallel&);
  int64_t (*backward_scratch_bytes)(const VocabularyProblem&, int64_t threads);
  void (*backward)(const VocabularyProblem&, const VocabularyGradient&, void* scratch, const Parallel&);
};

}  // namespace vleff

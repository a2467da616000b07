#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"
#include "softmax_statistics.h"

namespace vleff {

// What can be copied: position j of sample b is row offsets[b] + j.
struct CopySource {
  const void* keys;        // [total, width]
  const int32_t* ids;      // [total], words, at least 0
  const int32_t* offsets;  // [batch + 1]
  int64_t longest;         // sample's positions
};
constexpr int copy_sources = 2;

// Words that are generated or copied. For query t of a sample and the sample's positions j in source m:
//   attention_m(t, j) = softmax over j of scale * <q_t, k_m_j>
//   gate(t)           = softmax of gate_logits_t, in which a source without positions counts as -inf
//   P(t, word)        = gate(t)_0 * (probability that the decoder generates the word)
//                       + sum over m of gate(t)_(m + 1) * sum over j with ids_m_j = word of attention_m(t, j)
struct CopyProblem {
  DataType type;
  int64_t batch, width;
  const void* queries;           // [total, width]
  const int32_t* query_offsets;  // [batch + 1]
  int64_t most_queries;          // of a sample
  CopySource sources[copy_sources];
  const void* gate_logits;  // [total, 1 + copy_sources]
  float scale;
};

// Of one query and source: of all positions, and of those that hold the target. Without any: (-inf, 0).
struct CopyStatistics {
  SoftmaxStatistics all, target;
};

// One word a query.
struct CopyTargets {
  const float* generate_log_probs;  // [total]
  const int32_t* words;             // [total], -1 for a word that no id is
};

struct CopyOutput {
  float* log_probs;            // [total]: log P(t, words_t), -inf where P is 0
  CopyStatistics* statistics;  // [total, copy_sources]
  float* coverage_loss;        // [total], or null: sum over m and j of
                               //   min(attention_m(t, j), sum of attention_m(s, j) over s < t)
};

struct CopyGradient {
  const float* grad_log_probs;       // [total]
  const float* grad_coverage_loss;   // [total] or null
  const float* log_probs;            // as forward made them
  const CopyStatistics* statistics;  // as forward made them
  void* grad_queries;                // [total, width], the problem's type
  void* grad_keys[copy_sources];     // [total, width] of each source, the problem's type
  void* grad_gate_logits;            // [total, 1 + copy_sources], the problem's type
  float* grad_generate_log_probs;    // [total]
};

// All words a query.
struct CopyRows {
  int64_t words, extended_words;  // of the decoder, and with those that can only be copied
  const void* vocabulary_logits;  // [total, words], the problem's type: softmax generates
  float* log_probs;               // [total, extended_words]
};

// scratch: 64-byte aligned, parallel.threads * scratch_bytes(...) bytes.
struct CopyAttentionKernels {
  int64_t (*forward_scratch_bytes)(const CopyProblem&);
  void (*forward)(const CopyProblem&, const CopyTargets&, const CopyOutput&, void* scratch, const Parallel&);
  int64_t (*backward_scratch_bytes)(const CopyProblem&, bool coverage);
  void (*backward)(const CopyProblem&, const CopyTargets&, const CopyGradient&, void* scratch,
                   const Parallel&);
  int64_t (*rows_scratch_bytes)(const CopyProblem&);
  void (*rows)(const CopyProblem&, const CopyRows&, void* scratch, const Parallel&);
};

}  // namespace vleff

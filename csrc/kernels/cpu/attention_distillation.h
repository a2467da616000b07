#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"
#include "softmax_statistics.h"
#include "token_gather_attention.h"

namespace vleff {

// One model's attention: queries [total_q, heads, head_dim], keys [total_k, heads, head_dim].
struct DistillationSide {
  HeadRows q, k;
  int64_t head_dim;  // in [1, 256]
  float scale;
};

// The divergence of a student's attention from a teacher's in a ragged batch. For sample b, head h, queries i
// and keys j of that sample, and each side:
//   logits(i, j)  = scale * <q_i, k_j>
//   P, Q          = softmax over j of the teacher's, the student's logits
//   divergence(i) = sum_j P(i, j) * (log P(i, j) - log Q(i, j))
struct AttentionDistillationProblem {
  DataType type;
  int64_t batch, heads;
  int64_t total_q, total_k;  // q_offsets[batch], k_offsets[batch]
  DistillationSide teacher, student;
  const int32_t* q_offsets;  // [batch + 1]
  const int32_t* k_offsets;  // [batch + 1]
};

// Queries of samples without keys: divergence 0, statistics (-inf, 0).
struct AttentionDistillationOutput {
  float* divergence;              // [total_q, heads]
  SoftmaxStatistics* statistics;  // [total_q, heads, 2]: teacher, student
};

// Of the student alone.
struct AttentionDistillationGradient {
  const float* grad_divergence;         // [total_q, heads]
  const SoftmaxStatistics* statistics;  // as forward made them
  void* grad_q;                         // [total_q, heads, head_dim], the problem's type
  void* grad_k;                         // [total_k, heads, head_dim], the problem's type
};

// scratch: 64-byte aligned, parallel.threads * scratch_bytes(...) bytes. max_k is at least the longest
// sample's keys.
struct AttentionDistillationKernels {
  int64_t (*forward_scratch_bytes)(const AttentionDistillationProblem&, int64_t max_k);
  void (*forward)(const AttentionDistillationProblem&, const AttentionDistillationOutput&, int64_t max_k,
                  void* scratch, const Parallel&);
  int64_t (*backward_scratch_bytes)(const AttentionDistillationProblem&, int64_t max_k);
  void (*backward)(const AttentionDistillationProblem&, const AttentionDistillationGradient&, int64_t max_k,
                   void* scratch, const Parallel&);
};

}  // namespace vleff

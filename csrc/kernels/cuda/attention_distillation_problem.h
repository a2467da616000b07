#pragma once
#include "../cpu/attention_distillation.h"
#include "token_gather_attention_problem.h"

namespace vleff::cuda {

// The function is that of vleff::AttentionDistillationProblem. Offsets are clamped, so that wrong ones read
// and write nothing out of bounds. Rows from offsets[batch] on belong to no sample: they and the queries of
// samples without keys have divergence 0, statistics (-inf, 0) and gradients 0.
struct DistillationProblem {
  DataType type;
  int64_t batch, heads;
  DistillationSide teacher, student;
  RaggedSide queries, keys;  // without index
  float* divergence;         // [queries.total, heads]
  float* statistics;         // [queries.total, heads, 4]: maximum and sum, of teacher and of student
};

// Of the student alone.
struct DistillationGradient {
  DistillationProblem problem;   // with statistics as forward made them; divergence is not read
  const float* grad_divergence;  // [queries.total, heads]
  void* grad_q;                  // [queries.total, heads, student's head_dim], 16-byte aligned
  void* grad_k;                  // [keys.total, heads, student's head_dim], 16-byte aligned
};

}  // namespace vleff::cuda

// Start kernels on a CUDA stream and return at once: 0, or a CUDA error number.
extern "C" int vleff_attention_distillation_cuda(const vleff::cuda::DistillationProblem* problem,
                                                 void* stream);
extern "C" int vleff_attention_distillation_backward_cuda(const vleff::cuda::DistillationGradient* gradient,
                                                          void* stream);

#pragma once
#include "../cpu/copy_attention.h"
#include "token_gather_attention_problem.h"
#include "word_numbers.h"

namespace vleff::cuda {

// The functions are those of vleff::CopyProblem. Offsets are clamped, so that wrong ones read and write
// nothing out of bounds. Rows from offsets[batch] on belong to no sample: their results stay as they are,
// unless said otherwise.
//
// Logits of a launch stand in scratch memory, a row a query: [queries, stride] of each memory.
struct CopyMemory {
  const void* keys;    // [rows.total, width]
  const int32_t* ids;  // [rows.total]
  RaggedSide rows;     // without index; longest is at most the stride
  float* logits;       // [query_rows.total, stride], times log2(e); null where the stride is 0
  int64_t stride;
};

struct CopyLogits {
  DataType type;
  int64_t batch, width;
  const void* queries;    // [query_rows.total, width]
  RaggedSide query_rows;  // without index
  CopyMemory memories[copy_sources];
  const void* gate_logits;  // [query_rows.total, 1 + copy_sources]
  float scale;
};

// One word a query. Backward reads log_probs and statistics.
struct CopyOfTargets {
  CopyLogits logits;
  const float* generate_log_probs;  // [query_rows.total]
  WordNumbers words;                // [query_rows.total]
  float* log_probs;                 // [query_rows.total]
  CopyStatistics* statistics;       // [query_rows.total, copy_sources]
  float* coverage_loss;             // [query_rows.total] or null; makes forward overwrite the logits
};

struct CopyOfTargetsGradient {
  CopyOfTargets targets;
  const float* grad_log_probs;            // [query_rows.total]
  const float* grad_coverage_loss;        // [query_rows.total] or null
  float* covered[copy_sources];           // scratch as the logits, null without grad_coverage_loss
  void* logit_gradients[copy_sources];    // scratch [query_rows.total, stride below], the problem's type
  int64_t gradient_stride[copy_sources];  // whole 16 bytes
  float* factors;                         // scratch [query_rows.total]
  float* partial;                         // scratch [query_rows.total, width]
  void* grad_queries;                     // [query_rows.total, width]
  void* grad_keys[copy_sources];          // [total, width] of each memory
  void* grad_gate_logits;                 // [query_rows.total, 1 + copy_sources]
  float* grad_generate_log_probs;         // [query_rows.total]
};

// All words a query; rows of no sample become -inf.
struct CopyOfWords {
  CopyLogits logits;
  int64_t words, extended_words;
  const void* vocabulary_logits;  // [query_rows.total, words]
  float* log_probs;               // [query_rows.total, extended_words]
};

}  // namespace vleff::cuda

// Start kernels on a CUDA stream and return at once: 0, or a CUDA error number.
extern "C" int vleff_copy_attention_cuda(const vleff::cuda::CopyOfTargets* targets, void* stream);
extern "C" int vleff_copy_attention_backward_cuda(const vleff::cuda::CopyOfTargetsGradient* gradient,
                                                  void* stream);
extern "C" int vleff_copy_attention_rows_cuda(const vleff::cuda::CopyOfWords* rows, void* stream);

#pragma once
#include "../cpu/vocabulary_log_probs.h"
#include "word_numbers.h"

namespace vleff::cuda {

// The function is that of vleff::VocabularyProblem; targets that are no words of the vocabulary have
// log_probs -inf and gradients 0.
struct VocabularyLogProbs {
  DataType type;
  int64_t rows, width, words;  // at most 2^31 - 1 rows and words
  const void* hidden;          // [rows, width]
  const void* weight;          // [words, width]
  const void* bias;            // [words] or null
  WordNumbers targets;         // [rows]
  float* statistics;           // [rows, 2]: maximum and sum of the base-two logits; backward reads it
};

// Words of a tile of logits, of which statistics are kept apart at first.
constexpr int64_t vocabulary_tile_words = 64;

struct VocabularyForward {
  VocabularyLogProbs problem;
  float* partial;        // scratch [rows, words / vocabulary_tile_words rounded up, 2]
  float* target_logits;  // scratch [rows]
  float* log_probs;      // [rows]
};

// Gradients are made by chunks of words. No result has to be filled before.
struct VocabularyBackward {
  VocabularyLogProbs problem;
  const float* grad_log_probs;  // [rows]
  int64_t chunk_words;          // a multiple of vocabulary_tile_words
  void* logit_gradients;        // scratch [rows, chunk_words], the problem's type, 16-byte aligned
  float* factors;               // scratch [rows]
  float* partial;               // scratch [rows, width]
  void* grad_hidden;            // [rows, width]
  void* grad_weight;            // [words, width]
  void* grad_bias;              // [words] or null
};

}  // namespace vleff::cuda

// Start kernels on a CUDA stream and return at once: 0, or a CUDA error number.
extern "C" int vleff_vocabulary_log_probs_cuda(const vleff::cuda::VocabularyForward* forward, void* stream);
extern "C" int vleff_vocabulary_log_probs_backward_cuda(const vleff::cuda::VocabularyBackward* backward,
                                                        void* stream);

#pragma once
#include "copy_attention.h"
#include "vocabulary_log_probs.h"

namespace vleff {

// The likeliest words of each row of copy_attention, whose softmax generates from the logits of a
// vocabulary's rows. Of equal ones those with the smallest numbers.
struct CopyTopProblem {
  CopyProblem copy;
  VocabularyProblem vocabulary;  // its rows are the queries; without targets
  int64_t extended_words, count;
  int64_t watched;  // a word of the vocabulary
};

struct CopyTopOutput {
  float* log_probs;         // [rows, count], the largest first; -inf where there are no more
  int64_t* words;           // [rows, count]; 0 where there are no more
  float* watched_log_prob;  // [rows]
};

// scratch: 64-byte aligned, scratch_bytes(problem, parallel.threads) bytes.
struct CopyAttentionTopKernels {
  int64_t (*scratch_bytes)(const CopyTopProblem&, int64_t threads);
  void (*run)(const CopyTopProblem&, const CopyTopOutput&, void* scratch, const Parallel&);
};

}  // namespace vleff

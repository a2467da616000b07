#pragma once
#include <cstdint>

#include "../parallel.h"

namespace vleff {

// The largest values of each row, largest first, and where they stand; of equal ones those that stand first.
struct TopWordsProblem {
  int64_t rows, words, count;  // count: of values a row
  const float* values;         // [rows, words]; -inf and NaN are never among the largest
  float* top_values;           // [rows, count], -inf where there are no more
  int64_t* top_words;          // [rows, count], 0 where there are no more
};

struct TopWordsKernels {
  void (*run)(const TopWordsProblem&, const Parallel&);
};

}  // namespace vleff

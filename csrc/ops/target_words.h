#pragma once
#include "checks.h"

namespace vleff {

inline void check_words(const char* op, const char* argument, const int32_t* words, int64_t count,
                        int64_t size) {
  for (int64_t i = 0; i < count; ++i) {
    if (words[i] < 0 || words[i] >= size) {
      reject(op, argument, text("words in [0, ", size, ")"), text(words[i], " at position ", i));
    }
  }
}

// Words as contiguous int32 [rows], after a check that they are at least 0; -1 where they are `words` or
// above.
inline Tensor checked_target_words(const char* op, const Tensor& targets, int64_t rows, int64_t words) {
  check_tensor(op, "targets", targets, {ScalarType::Int, ScalarType::Long}, {rows}, "[rows]");
  const Tensor numbers = as_contiguous(targets);
  Tensor known = torch::stable::empty({rows}, ScalarType::Int);
  int32_t* target = known.mutable_data_ptr<int32_t>();
  const auto convert = [&](const auto* source) {
    for (int64_t row = 0; row < rows; ++row) {
      if (source[row] < 0) {
        reject(op, "targets", "words of at least 0", text(source[row], " at position ", row));
      }
      target[row] = source[row] < words ? static_cast<int32_t>(source[row]) : -1;
    }
  };
  if (numbers.scalar_type() == ScalarType::Int) {
    convert(numbers.const_data_ptr<int32_t>());
  } else {
    convert(numbers.const_data_ptr<int64_t>());
  }
  return known;
}

}  // namespace vleff

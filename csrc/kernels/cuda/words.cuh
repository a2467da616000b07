#pragma once
#include <cstdint>

#include "word_numbers.h"

namespace vleff::cuda {

// The word of a row, or -1 where it is not below `size`.
__device__ __forceinline__ int word_of(const WordNumbers& words, int64_t row, int64_t size) {
  const int64_t word = words.is_int64 ? static_cast<const int64_t*>(words.numbers)[row]
                                      : static_cast<const int32_t*>(words.numbers)[row];
  return word >= 0 && word < size ? static_cast<int>(word) : -1;
}

}  // namespace vleff::cuda

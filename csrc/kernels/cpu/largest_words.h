#pragma once
#include "simd.h"

namespace vleff::VLEFF_ISA {

// The largest values so far and their words, the largest first; of equal ones the smallest words. Never NaN;
// places that are not taken have -inf and word 0.
template <class Number>
struct LargestWords {
  float* values;
  Number* words;
  int64_t count;

  void clear() const {
    for (int64_t place = 0; place < count; ++place) {
      values[place] = -infinity;
      words[place] = 0;
    }
  }

  // Words may come in any order.
  void add(float value, int64_t word) const {
    if (count == 0 || value == -infinity || !comes_before(value, word, count - 1)) return;
    int64_t place = count - 1;
    for (; place > 0 && comes_before(value, word, place - 1); --place) {
      values[place] = values[place - 1];
      words[place] = words[place - 1];
    }
    values[place] = value;
    words[place] = static_cast<Number>(word);
  }

  // Words that are not added unless their value is above it, if they come in order.
  float least() const { return count > 0 ? values[count - 1] : infinity; }

 private:
  bool comes_before(float value, int64_t word, int64_t place) const {
    return value > values[place] || (value == values[place] && word < words[place]);
  }
};

}  // namespace vleff::VLEFF_ISA

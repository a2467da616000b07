#pragma once
#include "simd.h"

namespace vleff::VLEFF_ISA {

// Sums term(column, count) over a row in a fixed order. A term is a vector of the `count` columns from
// `column` on; its other lanes are 0.
template <class Term>
inline float sum_of(int64_t width, const Term& term) {
  constexpr int chains = 4;  // independent sums hide the latency of the addition
  Float sums[chains] = {};
  int64_t column = 0;
  for (; column + chains * lanes <= width; column += chains * lanes)
    for (int chain = 0; chain < chains; ++chain) sums[chain] += term(column + chain * lanes, lanes);
  for (; column < width; column += lanes) sums[0] += term(column, min(lanes, width - column));
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// sum over columns of a[column] * b[column]
template <class A, class B>
inline float dot(const A* a, const B* b, int64_t width) {
  return sum_of(width, [&](int64_t column, int64_t count) {
    return load_first(a + column, count) * load_first(b + column, count);
  });
}

}  // namespace vleff::VLEFF_ISA

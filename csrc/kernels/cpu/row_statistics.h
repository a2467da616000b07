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

// What makes normalized values of a row's: (value - mean - correction) * scale.
struct RowStatistics {
  float mean, correction, scale;
};

// Of a row whose columns are loaded by load_column(column, count), as in sum_of, and then stand in `row`,
// [width rounded up to lanes].
template <class LoadColumn>
inline RowStatistics row_statistics(int64_t width, float eps, float* row, const LoadColumn& load_column) {
  const float count = static_cast<float>(width);
  const float mean = sum_of(width,
                            [&](int64_t column, int64_t columns) {
                              Float value = load_column(column, columns);
                              store(row + column, value);
                              return value;
                            }) /
                     count;
  // Deviations from the rounded mean: their own mean corrects it, and the variance does not cancel.
  const auto deviation = [&](int64_t column, int64_t columns) {
    Float value = load(row + column) - mean;
    return columns < lanes ? (lane_numbers() < static_cast<uint32_t>(columns) ? value : Float{}) : value;
  };
  const float correction = sum_of(width, deviation) / count;
  const float variance = sum_of(width,
                                [&](int64_t column, int64_t columns) {
                                  Float value = deviation(column, columns);
                                  return value * value;
                                }) /
                             count -
                         correction * correction;
  return {mean, correction, static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(variance) + eps))};
}

}  // namespace vleff::VLEFF_ISA

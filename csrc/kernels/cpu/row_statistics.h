#pragma once
#include "row_sums.h"

namespace vleff::VLEFF_ISA {

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

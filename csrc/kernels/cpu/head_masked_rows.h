#pragma once
#include "head_masked_linear.h"
#include "ragged_rows.h"

// Which rows keep which heads, and how results leave.
namespace vleff::VLEFF_ISA {

inline bool keeps(const HeadMask& mask, int64_t sample, int64_t head) {
  return !mask.kept || mask.kept[sample * mask.heads + head];
}

inline bool keep_the_same(const HeadMask& mask, int64_t a, int64_t b) {
  return !mask.kept ||
         __builtin_memcmp(mask.kept + a * mask.heads, mask.kept + b * mask.heads, mask.heads) == 0;
}

inline bool any_keeps(const HeadMask& mask, int64_t head) {
  for (int64_t sample = 0; sample < mask.batch; ++sample)
    if (keeps(mask, sample, head)) return true;
  return false;
}

// Calls body(begin, end, sample) for the longest stretches of the tokens [begin, end) whose samples are
// alike.
template <class Alike, class Body>
void for_each_stretch(const HeadMask& mask, int64_t begin, int64_t end, const Alike& alike,
                      const Body& body) {
  while (begin < end) {
    const int64_t sample = sample_of(mask.offsets, mask.batch, begin);
    int64_t next = sample, stop = mask.offsets[sample + 1];
    while (stop < end && (mask.offsets[next + 2] == stop || alike(sample, next + 1))) {
      ++next;
      stop = mask.offsets[next + 1];
    }
    stop = min(stop, end);
    body(begin, stop, sample);
    begin = stop;
  }
}

// Calls body(begin, end, kept) for the longest stretches that keep a head, or drop it.
template <class Body>
void for_each_stretch_of_head(const HeadMask& mask, int64_t head, int64_t begin, int64_t end,
                              const Body& body) {
  for_each_stretch(
      mask, begin, end, [&](int64_t a, int64_t b) { return keeps(mask, a, head) == keeps(mask, b, head); },
      [&](int64_t first, int64_t last, int64_t sample) { body(first, last, keeps(mask, sample, head)); });
}

// Columns of a head: its features, all parts side by side.
inline int64_t columns_of_head(const HeadFeatures& features) {
  return features.parts * features.head_dim;
}

// Calls body(feature, first, count) for the pieces of a head's columns [column, column + columns) that are
// neighbouring features.
template <class Body>
void for_each_piece(const HeadFeatures& f, int64_t head, int64_t column, int64_t columns, const Body& body) {
  for (int64_t first = 0, count; first < columns; first += count) {
    const int64_t part = (column + first) / f.head_dim, of_part = (column + first) % f.head_dim;
    count = min(columns - first, f.head_dim - of_part);
    body((part * f.heads + head) * f.head_dim + of_part, first, count);
  }
}

// Row stride of packed rows: an odd number of cache lines, so that rows do not fall into few cache sets.
inline int64_t odd_stride(int64_t row_words) {
  return round_up(row_words, 16) | 16;
}

// target += source, rows of `columns` elements that are `stride` apart.
template <class T>
void add_rows(const T* source, int64_t rows, int64_t stride, int64_t columns, float* target) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; column += lanes) {
      const int64_t count = min(lanes, columns - column);
      float* place = target + row * stride + column;
      store_first(place, load_first(place, count) + load_first(source + row * stride + column, count), count);
    }
}

// Rows of sums, which are `stride` floats apart, plus bias and residual, as elements.
template <class T>
void store_rows(const float* sums, int64_t stride, int64_t rows, int64_t columns, const T* bias,
                const T* residual, T* out, int64_t out_stride) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; column += lanes) {
      const int64_t count = min(lanes, columns - column);
      Float value = load_first(sums + row * stride + column, count);
      if (bias) value += load_first(bias + column, count);
      if (residual) value += load_first(residual + row * out_stride + column, count);
      store_first(out + row * out_stride + column, value, count);
    }
}

}  // namespace vleff::VLEFF_ISA

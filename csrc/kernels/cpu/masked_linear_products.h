#pragma once
#include "masked_linear_panels.h"

// Products of one block of a sparse matrix with a panel. Each sum takes its elements one after the other, or,
// where the processor multiplies pairs of bfloat16, two by two, and runs over at most `longest_sum` of them,
// which are then added to those before: the same bits for any number of tokens, and fewer roundings than one
// long sum.
namespace vleff::VLEFF_ISA {

// One block of one chunk: its rows in the order of their places.
template <class T>
struct Block {
  int64_t rows;
  const int32_t* starts;  // [rows + 1]
  const uint8_t* order;
  const uint8_t* columns;
  const T* values;
  bool at_end;  // whether fewer than `read_ahead` elements follow
};

constexpr int read_ahead = 16;
constexpr int32_t longest_sum = 64;

inline float widen_one(float value) {
  return value;
}
inline float widen_one(BFloat16 value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16);
}
inline float widen_one(Float16 value) {
  return load_first(&value, 1)[0];
}

// The sums of one row for all tokens of a panel.
template <int vectors>
struct RowSums {
  Float of[vectors];

  void start() {
#pragma GCC unroll 4
    for (int vector = 0; vector < vectors; ++vector) of[vector] = Float{};
  }
  void add(Float value, const float* feature) {
#pragma GCC unroll 4
    for (int vector = 0; vector < vectors; ++vector) of[vector] += value * load(feature + vector * lanes);
  }
  void finish(float* memory, bool first) const {
#pragma GCC unroll 4
    for (int vector = 0; vector < vectors; ++vector) {
      float* target = memory + vector * lanes;
      store(target, first ? of[vector] : load(target) + of[vector]);
    }
  }
};

// The rest of a row, from `element` on.
template <int vectors, class T>
inline void add_elements(RowSums<vectors>& sums, const Block<T>& block, int32_t element, int32_t end,
                         const float* panel) {
  for (; element < end; ++element)
    sums.add(broadcast(widen_one(block.values[element])), panel + block.columns[element] * (vectors * lanes));
}

#if defined(__AVX512BF16__)
// The rest of a row, from `element` on; an odd element at the end makes a pair with zero.
template <int vectors>
inline void add_elements(RowSums<vectors>& sums, const Block<BFloat16>& block, int32_t element, int32_t end,
                         const BFloat16* panel) {
  constexpr int64_t width = vectors * lanes;
  for (; element < end; element += 2) {
    const bool pair = element + 1 < end;
    const uint32_t values = block.values[element].bits | (pair ? block.values[element + 1].bits << 16 : 0);
    const __m512bh factors = (__m512bh)_mm512_set1_epi32(values);
    const BFloat16* a = panel + block.columns[element] * width;
    const BFloat16* b = pair ? panel + block.columns[element + 1] * width : nullptr;
#pragma GCC unroll 2
    for (int vector = 0; vector < vectors; vector += 2) {
      const __m512i first = _mm512_loadu_si512(a + vector * lanes);
      const __m512i second = pair ? _mm512_loadu_si512(b + vector * lanes) : _mm512_setzero_si512();
      sums.of[vector] = (Float)_mm512_dpbf16_ps((__m512)sums.of[vector],
                                                (__m512bh)_mm512_unpacklo_epi16(first, second), factors);
      sums.of[vector + 1] = (Float)_mm512_dpbf16_ps((__m512)sums.of[vector + 1],
                                                    (__m512bh)_mm512_unpackhi_epi16(first, second), factors);
    }
  }
}
#endif

template <int vectors, class T, class Element>
inline void multiply_row(const Block<T>& block, int64_t place, const Element* panel, bool first,
                         float* sums) {
  float* memory = sums + block.order[place] * (vectors * lanes);
  RowSums<vectors> row;
  row.start();
  add_elements(row, block, block.starts[place], block.starts[place + 1], panel);
  row.finish(memory, first);
}

// As above for a row of more than `longest_sum` elements.
template <int vectors, class T, class Element>
inline void multiply_long_row(const Block<T>& block, int64_t place, const Element* panel, bool first,
                              float* sums) {
  float* memory = sums + block.order[place] * (vectors * lanes);
  for (int32_t element = block.starts[place], end = block.starts[place + 1]; element < end;
       element += longest_sum, first = false) {
    RowSums<vectors> row;
    row.start();
    add_elements(row, block, element, min(end, element + longest_sum), panel);
    row.finish(memory, first);
  }
}

#if defined(__AVX512F__)
// Rows at a time: enough independent sums to hide the latency of their additions.
template <int vectors>
constexpr int rows_at_a_time = vectors <= 2 ? 8 : 4;

inline uint64_t load_columns(const uint8_t* columns) {
  return load_raw<uint64_t>(columns);
}

// The next `count` (1 to 8) elements of each row. Values and columns are taken from registers: loads of the
// panel are what the speed depends on.
template <int vectors>
inline void add_group(RowSums<vectors> (&sums)[rows_at_a_time<vectors>], const Block<float>& block,
                      const int32_t* starts, int32_t done, int count, const float* panel) {
  uint64_t columns[rows_at_a_time<vectors>];
  __m512 values[rows_at_a_time<vectors>];
#pragma GCC unroll 8
  for (int row = 0; row < rows_at_a_time<vectors>; ++row) {
    columns[row] = load_columns(block.columns + starts[row] + done);
    values[row] = _mm512_castps256_ps512(_mm256_loadu_ps(block.values + starts[row] + done));
  }
  __m512i number = _mm512_setzero_si512();
  do {
#pragma GCC unroll 8
    for (int row = 0; row < rows_at_a_time<vectors>; ++row) {
      sums[row].add((Float)_mm512_permutexvar_ps(number, values[row]),
                    panel + (columns[row] & 255) * (vectors * lanes));
      columns[row] >>= 8;
    }
    number = _mm512_add_epi32(number, _mm512_set1_epi32(1));
  } while (--count);
}
constexpr int group_elements(float) {
  return 8;
}
constexpr int element_multiple(float) {
  return 1;
}

#if defined(__AVX512BF16__)
// As above for 2 to 8 elements, an even number.
template <int vectors>
inline void add_group(RowSums<vectors> (&sums)[rows_at_a_time<vectors>], const Block<BFloat16>& block,
                      const int32_t* starts, int32_t done, int count, const BFloat16* panel) {
  constexpr int64_t width = vectors * lanes;
  uint64_t columns[rows_at_a_time<vectors>];
  __m512i values[rows_at_a_time<vectors>];
#pragma GCC unroll 8
  for (int row = 0; row < rows_at_a_time<vectors>; ++row) {
    columns[row] = load_columns(block.columns + starts[row] + done);
    values[row] = _mm512_castsi128_si512(load_raw<__m128i>(block.values + starts[row] + done));
  }
  __m512i number = _mm512_setzero_si512();
  do {
#pragma GCC unroll 8
    for (int row = 0; row < rows_at_a_time<vectors>; ++row) {
      const BFloat16* a = panel + (columns[row] & 255) * width;
      const BFloat16* b = panel + (columns[row] >> 8 & 255) * width;
      columns[row] >>= 16;
      const __m512bh factors = (__m512bh)_mm512_permutexvar_epi32(number, values[row]);
#pragma GCC unroll 2
      for (int vector = 0; vector < vectors; vector += 2) {
        const __m512i first = _mm512_loadu_si512(a + vector * lanes);
        const __m512i second = _mm512_loadu_si512(b + vector * lanes);
        sums[row].of[vector] = (Float)_mm512_dpbf16_ps(
            (__m512)sums[row].of[vector], (__m512bh)_mm512_unpacklo_epi16(first, second), factors);
        sums[row].of[vector + 1] = (Float)_mm512_dpbf16_ps(
            (__m512)sums[row].of[vector + 1], (__m512bh)_mm512_unpackhi_epi16(first, second), factors);
      }
    }
    number = _mm512_add_epi32(number, _mm512_set1_epi32(1));
  } while (count -= 2);
}
constexpr int group_elements(BFloat16) {
  return 8;
}
constexpr int element_multiple(BFloat16) {
  return 2;
}
#endif

// The products of as many rows, from `place` on, as are taken at a time.
template <int vectors, class T, class Element>
inline void multiply_rows(const Block<T>& block, int64_t place, const Element* panel, bool first,
                          float* sums) {
  constexpr int count = rows_at_a_time<vectors>, group = group_elements(T{}),
                multiple = element_multiple(T{});
  RowSums<vectors> rows[count];
#pragma GCC unroll 8
  for (int row = 0; row < count; ++row) rows[row].start();
  const int32_t* starts = block.starts + place;
  // rows grow shorter: all have as many elements as the last
  const int32_t least = (starts[count] - starts[count - 1]) / multiple * multiple;
  for (int32_t done = 0; done < least; done += group)
    add_group<vectors>(rows, block, starts, done, least - done < group ? least - done : group, panel);
#pragma GCC unroll 8
  for (int row = 0; row < count; ++row) {
    add_elements(rows[row], block, starts[row] + least, starts[row + 1], panel);
    rows[row].finish(sums + block.order[place + row] * (vectors * lanes), first);
  }
}
#endif

// sums [rows of the chunk][width of the panel] += block * panel, or = where it is the first
template <int vectors, class T, class Element>
void multiply_block(const Block<T>& block, const Element* panel, bool first, float* sums) {
  int64_t place = 0;
  for (; place < block.rows && block.starts[place + 1] - block.starts[place] > longest_sum; ++place)
    multiply_long_row<vectors>(block, place, panel, first, sums);
#if defined(__AVX512F__)
  if constexpr (requires { element_multiple(T{}); }) {
    for (; !block.at_end && place + rows_at_a_time<vectors> <= block.rows; place += rows_at_a_time<vectors>)
      multiply_rows<vectors>(block, place, panel, first, sums);
  }
#endif
  for (; place < block.rows; ++place) multiply_row<vectors>(block, place, panel, first, sums);
}

}  // namespace vleff::VLEFF_ISA

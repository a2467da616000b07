#pragma once
#include "masked_linear_products.h"

// Products for few tokens, which would leave a panel almost empty: `slice_rows` rows of a block at a time, a
// row in each lane, from the weight's copy by steps. Each sum takes its elements in the order that it has in
// a panel: a token's bits are the same.
namespace vleff::VLEFF_ISA {

constexpr int64_t most_few_tokens = 2;

// How the features of a token stand in the scratch.
template <class T>
struct FeatureOf {
  using Element = float;
};
template <class T>
inline void copy_features(const T* source, int64_t count, float* target) {
  for (int64_t feature = 0; feature < count; feature += lanes)
    store_first(target + feature, load_first(source + feature, min(lanes, count - feature)),
                min(lanes, count - feature));
}

// A slice: up to slice_rows rows of a block, longest first, that stand at neighbouring places.
template <class T>
struct Slice {
  int64_t rows;
  const int32_t* starts;  // [rows + 1]
  const uint8_t* columns;
  const T* values;

  int32_t steps() const { return starts[1] - starts[0]; }
};

// How far a slice has been summed.
struct SlicePlace {
  int32_t element, step;
};

struct SliceSums {
  alignas(64) float of[slice_rows];
};

// Where the sums that begin at a place end.
template <class T>
inline int32_t last_step(const Slice<T>& slice, const SlicePlace& place) {
  return min(slice.steps(), place.step + longest_sum);
}

#if defined(__AVX512F__)
// The features of a block in registers, to be looked up by column.
template <class Element, int block_columns>
struct FeatureTable;

template <int block_columns>
struct FeatureTable<float, block_columns> {
  __m512 of[block_columns / 16];

  explicit FeatureTable(const float* features) {
#pragma GCC unroll 16
    for (int i = 0; i < block_columns / 16; ++i) of[i] = _mm512_loadu_ps(features + 16 * i);
  }
  __m512 look_up(__m512i columns) const {
    __m512 found[block_columns / 32];
#pragma GCC unroll 8
    for (int i = 0; i < block_columns / 32; ++i)
      found[i] = _mm512_permutex2var_ps(of[2 * i], columns, of[2 * i + 1]);
#pragma GCC unroll 3
    for (int count = block_columns / 64, bit = 32; count >= 1; count /= 2, bit *= 2) {
      const __mmask16 upper = _mm512_test_epi32_mask(columns, _mm512_set1_epi32(bit));
#pragma GCC unroll 4
      for (int i = 0; i < count; ++i) found[i] = _mm512_mask_mov_ps(found[2 * i], upper, found[2 * i + 1]);
    }
    return found[0];
  }
};

inline SliceSums in_memory(__m512 sums) {
  SliceSums memory;
  _mm512_store_ps(memory.of, sums);
  return memory;
}
inline __m512i slice_lengths(const int32_t* starts, int64_t rows) {
  const __mmask16 valid = 0xffff >> (slice_rows - rows);
  return _mm512_sub_epi32(_mm512_maskz_loadu_epi32(valid, starts + 1),
                          _mm512_maskz_loadu_epi32(valid, starts));
}
inline __mmask16 longer_than(__m512i lengths, int32_t step) {
  return _mm512_cmpgt_epi32_mask(lengths, _mm512_set1_epi32(step));
}
inline __m512i load_columns(const uint8_t* columns, __mmask16 active) {
  return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(active, columns));
}
inline __m512 load_active(const float* values, __mmask16 active) {
  return _mm512_maskz_loadu_ps(active, values);
}
template <class T>
inline __m512 load_active(const T* values, __mmask16 active) {
  return (__m512)widen((Half)_mm256_maskz_loadu_epi16(active, values), T{});
}

// The steps that all rows of a slice have: those of its last row, none if lanes are left over.
template <class T>
inline int32_t common_steps(const Slice<T>& slice) {
  return slice.rows == slice_rows ? slice.starts[slice_rows] - slice.starts[slice_rows - 1] : 0;
}

template <int block_columns, class T>
inline SliceSums slice_sums(const Slice<T>& slice, const FeatureTable<float, block_columns>& table,
                            SlicePlace& place) {
  const int32_t steps = last_step(slice, place), common = min(common_steps(slice), steps);
  __m512 sums = _mm512_setzero_ps();
  auto& [element, step] = place;
  for (; step < common; ++step, element += slice_rows) {
    const __m512i columns = _mm512_cvtepu8_epi32(load_raw<__m128i>(slice.columns + element));
    sums = _mm512_fmadd_ps((__m512)load(slice.values + element), table.look_up(columns), sums);
  }
  const __m512i lengths = slice_lengths(slice.starts, slice.rows);
  for (; step < steps; ++step) {
    const __mmask16 active = longer_than(lengths, step);
    const __m512 features = table.look_up(load_columns(slice.columns + element, active));
    sums = _mm512_mask3_fmadd_ps(load_active(slice.values + element, active), features, sums, active);
    element += __builtin_popcount(active);
  }
  return in_memory(sums);
}
#endif

#if defined(__AVX512BF16__)
template <>
struct FeatureOf<BFloat16> {
  using Element = BFloat16;
};
inline void copy_features(const BFloat16* source, int64_t count, BFloat16* target) {
  __builtin_memcpy(target, source, count * sizeof(BFloat16));
}

template <int block_columns>
struct FeatureTable<BFloat16, block_columns> {
  __m512i of[block_columns / 32];

  explicit FeatureTable(const BFloat16* features) {
#pragma GCC unroll 8
    for (int i = 0; i < block_columns / 32; ++i) of[i] = _mm512_loadu_si512(features + 32 * i);
  }
  // columns: two numbers of 16 bits a lane
  __m512i look_up(__m512i columns) const {
    __m512i found[block_columns / 64];
#pragma GCC unroll 4
    for (int i = 0; i < block_columns / 64; ++i)
      found[i] = _mm512_permutex2var_epi16(of[2 * i], columns, of[2 * i + 1]);
#pragma GCC unroll 2
    for (int count = block_columns / 128, bit = 64; count >= 1; count /= 2, bit *= 2) {
      const __mmask32 upper = _mm512_test_epi16_mask(columns, _mm512_set1_epi16(bit));
#pragma GCC unroll 2
      for (int i = 0; i < count; ++i) found[i] = _mm512_mask_mov_epi16(found[2 * i], upper, found[2 * i + 1]);
    }
    return found[0];
  }
};

// 0, 16, 1, 17, ...
inline __m512i side_by_side() {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(16)), 16));
}

// Two steps at a time, as in a panel; the second is 0 for the rows that end with the first.
template <int block_columns>
inline SliceSums slice_sums(const Slice<BFloat16>& slice, const FeatureTable<BFloat16, block_columns>& table,
                            SlicePlace& place) {
  const __m512i lengths = slice_lengths(slice.starts, slice.rows);
  const __m512i low_words = _mm512_set1_epi32(0xffff);
  const int32_t steps = last_step(slice, place), common = min(common_steps(slice) / 2 * 2, steps);
  __m512 sums = _mm512_setzero_ps();
  auto& [element, step] = place;
  for (; step < common; step += 2, element += 2 * slice_rows) {
    const __m512i columns = _mm512_cvtepu8_epi16(load_raw<__m256i>(slice.columns + element));
    const __m512i values = _mm512_loadu_si512(slice.values + element);
    // the words of the two steps, side by side for each row
    const __m512i pairs = table.look_up(_mm512_permutexvar_epi16(side_by_side(), columns));
    sums =
        _mm512_dpbf16_ps(sums, (__m512bh)pairs, (__m512bh)_mm512_permutexvar_epi16(side_by_side(), values));
  }
  const auto load_words = [&](int32_t from, __mmask16 active) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(active, slice.values + from));
  };
  for (; step < steps; step += 2) {
    const __mmask16 first = longer_than(lengths, step), second = longer_than(lengths, step + 1);
    const int32_t next = element + __builtin_popcount(first);
    const __m512i values =
        _mm512_or_si512(load_words(element, first), _mm512_slli_epi32(load_words(next, second), 16));
    const __m512i columns =
        _mm512_or_si512(load_columns(slice.columns + element, first),
                        _mm512_slli_epi32(load_columns(slice.columns + next, second), 16));
    __m512i features = table.look_up(columns);
    features = _mm512_mask_and_epi32(features, _knot_mask16(second), features, low_words);
    // not _mm512_mask_dpbf16_ps: GCC's, 12 for one, keeps only 8 bits of its mask
    sums = _mm512_mask_mov_ps(sums, first, _mm512_dpbf16_ps(sums, (__m512bh)features, (__m512bh)values));
    element = next + __builtin_popcount(second);
  }
  return in_memory(sums);
}
#endif

// Without vectors of `slice_rows` lanes: one row after the other, the features in memory.
template <class T>
inline SliceSums slice_sums(const Slice<T>& slice, const float* features, SlicePlace& place) {
  SliceSums sums{};
  const int32_t steps = last_step(slice, place);
  auto& [element, step] = place;
  int64_t active = slice.rows;
  for (; step < steps; ++step) {
    while (slice.starts[active] - slice.starts[active - 1] <= step) --active;
    for (int64_t row = 0; row < active; ++row, ++element)
      sums.of[row] += widen_one(slice.values[element]) * features[slice.columns[element]];
  }
  return sums;
}

template <class T, class Table>
void multiply_slices(const Block<T>& block, const Table& table, bool first, float* sums) {
  for (int64_t place = 0; place < block.rows; place += slice_rows) {
    const int64_t rows = min(slice_rows, block.rows - place);
    const Slice<T> slice{rows, block.starts + place, block.columns, block.values};
    SlicePlace at{slice.starts[0], 0};
    bool start = first;
    do {
      const SliceSums results = slice_sums(slice, table, at);
      for (int64_t row = 0; row < rows; ++row) {
        float& sum = sums[block.order[place + row]];
        sum = start ? results.of[row] : sum + results.of[row];
      }
      start = false;
    } while (at.step < slice.steps());
  }
}

// sums [rows of the chunk] += block * features [largest_column_block], or = where it is the first. The
// block's elements are by steps.
template <class T, class Element>
void multiply_block_with_token(const Block<T>& block, [[maybe_unused]] int64_t column_block,
                               const Element* features, bool first, float* sums) {
#if defined(__AVX512F__)
  if (column_block <= 128)
    multiply_slices(block, FeatureTable<Element, 128>(features), first, sums);
  else
    multiply_slices(block, FeatureTable<Element, 256>(features), first, sums);
#else
  multiply_slices(block, features, first, sums);
#endif
}

}  // namespace vleff::VLEFF_ISA

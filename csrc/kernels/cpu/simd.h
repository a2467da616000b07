#pragma once
#include <cstdint>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Vectors of 32-bit lanes as wide as the instruction set this file is compiled for. All functions live in a
// namespace of that level, so that no linker can mix the code of two levels.
namespace vleff::VLEFF_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif
constexpr int lanes = vector_bytes / 4;

typedef float Float __attribute__((vector_size(vector_bytes)));
typedef int32_t Int __attribute__((vector_size(vector_bytes)));
typedef uint32_t UInt __attribute__((vector_size(vector_bytes)));
typedef uint16_t Half __attribute__((vector_size(vector_bytes / 2)));

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr float infinity = __builtin_inff();

inline int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t max(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Memory

template <class Vector, class T>
inline Vector load_raw(const T* source) {
  Vector vector;
  __builtin_memcpy(&vector, source, sizeof(Vector));
  return vector;
}
template <class T, class Vector>
inline void store_raw(T* target, Vector vector) {
  __builtin_memcpy(target, &vector, sizeof(Vector));
}

inline Float broadcast(float value) {
  return value - Float{};
}

inline UInt lane_numbers() {
  UInt numbers;
  for (int lane = 0; lane < lanes; ++lane) numbers[lane] = lane;
  return numbers;
}

// Conversion; rounding is to nearest even.

inline Float widen(Half half, BFloat16) {
  return (Float)(__builtin_convertvector(half, UInt) << 16);
}
inline Half narrow(Float value, BFloat16) {
#if defined(__AVX512BF16__)
  return (Half)_mm512_cvtneps_pbh((__m512)value);
#else
  UInt bits = (UInt)value;
  UInt rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  UInt quiet_nan = (bits >> 16) | 0x40;
  return __builtin_convertvector(value == value ? rounded : quiet_nan, Half);
#endif
}
inline Float widen(Half half, Float16) {
#if defined(__AVX512F__)
  return (Float)_mm512_cvtph_ps((__m256i)half);
#elif defined(__AVX2__)
  return (Float)_mm256_cvtph_ps((__m128i)half);
#else
  Float value;
  for (int lane = 0; lane < lanes; ++lane) {
    _Float16 element;
    uint16_t bits = half[lane];
    __builtin_memcpy(&element, &bits, 2);
    value[lane] = element;
  }
  return value;
#endif
}
inline Half narrow(Float value, Float16) {
#if defined(__AVX512F__)
  return (Half)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  return (Half)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#else
  Half half;
  for (int lane = 0; lane < lanes; ++lane) {
    _Float16 element = static_cast<_Float16>(value[lane]);
    uint16_t bits;
    __builtin_memcpy(&bits, &element, 2);
    half[lane] = bits;
  }
  return half;
#endif
}

// A full vector of elements as float32, from float32, bfloat16 or float16 memory, and back.

inline Float load(const float* source) {
  return load_raw<Float>(source);
}
template <class T>
inline Float load(const T* source) {
  return widen(load_raw<Half>(source), T{});
}
inline void store(float* target, Float value) {
  store_raw(target, value);
}
template <class T>
inline void store(T* target, Float value) {
  store_raw(target, narrow(value, T{}));
}

// The first `count` (1 to lanes) elements; the other lanes are 0.
template <class T>
inline Float load_first(const T* source, int64_t count) {
  if (count >= lanes) return load(source);
  T elements[lanes] = {};
  __builtin_memcpy(elements, source, count * sizeof(T));
  return load(elements);
}
template <class T>
inline void store_first(T* target, Float value, int64_t count) {
  if (count >= lanes) return store(target, value);
  T elements[lanes];
  store(elements, value);
  __builtin_memcpy(target, elements, count * sizeof(T));
}

// Arithmetic

// Where an operand is NaN: `b`.
inline Float maximum(Float a, Float b) {
#if defined(__AVX512F__)
  return (Float)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Float)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// Whether a > b in any lane; never where an operand is NaN.
inline bool any_above(Float a, Float b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)) != 0;
#else
  for (int lane = 0; lane < lanes; ++lane)
    if (a[lane] > b[lane]) return true;
  return false;
#endif
}

// lane -> lane ^ distance
template <int distance, int... lane>
inline Float swap_lanes(Float value, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(value, value, (lane ^ distance)...);
}

// Reductions in a fixed order: a butterfly over the lanes.
template <int distance = lanes / 2>
inline float reduce_add(Float value) {
  if constexpr (distance == 0) {
    return value[0];
  } else {
    return reduce_add<distance / 2>(value +
                                    swap_lanes<distance>(value, std::make_integer_sequence<int, lanes>{}));
  }
}
template <int distance = lanes / 2>
inline float reduce_maximum(Float value) {
  if constexpr (distance == 0) {
    return value[0];
  } else {
    Float swapped = swap_lanes<distance>(value, std::make_integer_sequence<int, lanes>{});
    return reduce_maximum<distance / 2>(maximum(value, swapped));
  }
}

// 2 ** x to 1.2 units in the last place for x <= 127; below -126 exactly 0; NaN stays NaN.
inline Float exp2(Float x) {
  const float to_integer = 12582912.0f;  // 1.5 * 2**23: adding it leaves no fraction bits
  Float whole = (x + to_integer) - to_integer;
  Float f = x - whole;
  Float p = broadcast(1.53533620e-4f);  // minimax for the relative error on [-0.5, 0.5]: 2e-9
  p = p * f + 1.33988747e-3f;
  p = p * f + 9.61843736e-3f;
  p = p * f + 5.55033247e-2f;
  p = p * f + 2.40226479e-1f;
  p = p * f + 6.93147203e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  p = (Float)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  p = p * (Float)((__builtin_convertvector(whole, Int) + 127) << 23);
#endif
  return x < -126.0f ? Float{} : p;
}

// The natural logarithm of normal numbers, to a unit in the last place of the larger of the result and 1; NaN
// stays NaN. log(2 ** e * m) with m near 1, by the series of the area hyperbolic tangent.
inline Float natural_log(Float x) {
  const uint32_t root_of_half = 0x3F3504F3;
  Int exponent = (Int)((UInt)x - root_of_half) >> 23;  // unsigned: whatever bits x has, nothing overflows
  Float m = (Float)((UInt)x - ((UInt)exponent << 23));
  Float s = (m - 1.0f) / (m + 1.0f), square = s * s;
  Float p = broadcast(2.0f / 9.0f);  // the next term is below 2 ** -27 of the sum
  p = p * square + 2.0f / 7.0f;
  p = p * square + 2.0f / 5.0f;
  p = p * square + 2.0f / 3.0f;
  p = p * square + 2.0f;
  Float result = __builtin_convertvector(exponent, Float) * 0.69314718f + s * p;
  return x == x ? result : x;
}

// Exchanges rows and columns of a square of lanes x lanes words.
template <int distance, int... lane>
inline void exchange_blocks(Float& a, Float& b, std::integer_sequence<int, lane...>) {
  Float first = __builtin_shufflevector(a, b, ((lane & distance) ? lanes + (lane ^ distance) : lane)...);
  b = __builtin_shufflevector(a, b, ((lane & distance) ? lanes + lane : (lane | distance))...);
  a = first;
}
template <int distance = 1>
inline void transpose(Float (&rows)[lanes]) {
  if constexpr (distance < lanes) {
#pragma GCC unroll 16
    for (int row = 0; row < lanes; ++row)
      if (!(row & distance))
        exchange_blocks<distance>(rows[row], rows[row | distance], std::make_integer_sequence<int, lanes>{});
    transpose<2 * distance>(rows);
  }
}

}  // namespace vleff::VLEFF_ISA

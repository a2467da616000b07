#pragma once
#include "masked_linear.h"
#include "simd.h"

// Panels: up to `panel_tokens` tokens, feature by feature, so that one feature of all tokens is a few
// vectors.
namespace vleff::VLEFF_ISA {

constexpr int panel_vectors = 4;
constexpr int64_t panel_tokens = panel_vectors * lanes;

// How an element type stands in a panel: bfloat16 as it is where the processor multiplies it, else float32.
template <class T>
struct PanelOf {
  using Element = float;
};
#if defined(__AVX512BF16__)
template <>
struct PanelOf<BFloat16> {
  using Element = BFloat16;
};
// Products of bfloat16 take tokens 0-15 and 16-31 in turns of four: a feature's 32 tokens stand so that sums
// come out in order.
inline void store_interleaved(BFloat16* target, Half first, Half second) {
  const __m512i turns = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  _mm512_storeu_si512(target, _mm512_permutex2var_epi64(_mm512_castsi256_si512((__m256i)first), turns,
                                                        _mm512_castsi256_si512((__m256i)second)));
}
#endif

template <class Element>
constexpr int vectors_at_a_time = 1;
#if defined(__AVX512BF16__)
template <>
constexpr int vectors_at_a_time<BFloat16> = 2;
#endif

// `lanes` tokens of `lanes` features, those beyond `tokens` and `features` zero: square[feature] = all tokens
template <class T>
inline void load_square(const T* source, int64_t stride, int64_t tokens, int64_t features,
                        Float (&square)[lanes]) {
  if (tokens >= lanes && features >= lanes) {
#pragma GCC unroll 16
    for (int token = 0; token < lanes; ++token) square[token] = load(source + token * stride);
  } else {
    for (int token = 0; token < lanes; ++token)
      square[token] = token < tokens ? load_first(source + token * stride, min(features, lanes)) : Float{};
  }
  transpose(square);
}

// source [tokens, ...] -> panel [features][width]; width is a multiple of lanes, and tokens <= width
template <class T>
void pack_panel(const T* source, int64_t stride, int64_t tokens, int64_t features, int64_t width,
                float* panel) {
  for (int64_t token = 0; token < width; token += lanes)
    for (int64_t feature = 0; feature < features; feature += lanes) {
      Float square[lanes];
      load_square(source + token * stride + feature, stride, tokens - token, features - feature, square);
      float* target = panel + feature * width + token;
      if (features - feature >= lanes) {
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) store(target + i * width, square[i]);
      } else {
        for (int64_t i = 0; i < features - feature; ++i) store(target + i * width, square[i]);
      }
    }
}

#if defined(__AVX512BF16__)
inline void pack_panel(const BFloat16* source, int64_t stride, int64_t tokens, int64_t features,
                       int64_t width, BFloat16* panel) {
  for (int64_t token = 0; token < width; token += 2 * lanes)
    for (int64_t feature = 0; feature < features; feature += lanes) {
      const BFloat16* corner = source + token * stride + feature;
      Float first[lanes], second[lanes];
      load_square(corner, stride, tokens - token, features - feature, first);
      if (tokens - token > lanes)
        load_square(corner + lanes * stride, stride, tokens - token - lanes, features - feature, second);
      else
        for (int i = 0; i < lanes; ++i) second[i] = Float{};
      BFloat16* target = panel + feature * width + token;
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        if (i < features - feature)
          store_interleaved(target + i * width, narrow(first[i], BFloat16{}), narrow(second[i], BFloat16{}));
    }
}
#endif

// sums [features][width] of a panel -> rows of `target`, [tokens, ...], each vector of a token's features
// after finish(vector, token, first feature, number of features)
template <class T, class Finish>
void unpack_panel(const float* sums, int64_t width, int64_t tokens, int64_t features, T* target,
                  int64_t stride, const Finish& finish) {
  for (int64_t token = 0; token < tokens; token += lanes)
    for (int64_t feature = 0; feature < features; feature += lanes) {
      const int64_t count = min(lanes, features - feature), valid = min(lanes, tokens - token);
      const float* source = sums + feature * width + token;
      T* corner = target + token * stride + feature;
      Float square[lanes];
      if (count == lanes && valid == lanes) {
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) square[i] = load(source + i * width);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i)
          store(corner + i * stride, finish(square[i], token + i, feature, lanes));
      } else {
        for (int i = 0; i < lanes; ++i) square[i] = i < count ? load(source + i * width) : Float{};
        transpose(square);
        for (int64_t i = 0; i < valid; ++i)
          store_first(corner + i * stride, finish(square[i], token + i, feature, count), count);
      }
    }
}

}  // namespace vleff::VLEFF_ISA

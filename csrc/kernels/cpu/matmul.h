#pragma once
#include "matmul_operands.h"
#if defined(__AMX_BF16__) || defined(VLEFF_EMULATED_TILES)
#include "matmul_tiles.h"
#endif

// The project's register-blocked matrix products. Sums are float32, run in order of depth and start at 0 in
// each product, whose sum is then added where results accumulate (AMX begins at what is there). So an
// element's bits depend on how its depth was cut, but not on the block it was computed in.
namespace vleff::VLEFF_ISA {

// Word products: sum + a * b.
struct Float32Product {
  static constexpr int elements_per_word = 1;
  static Float multiply_add(UInt a, UInt b, Float sum) { return (Float)a * (Float)b + sum; }
};
#if defined(__AVX512BF16__)
struct BFloat16Product {
  static constexpr int elements_per_word = 2;
  static Float multiply_add(UInt a, UInt b, Float sum) {
    return (Float)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

template <class Product, int rows, int vectors>
void multiply_tile(LeftOperand a, const Word* b, int64_t b_stride, Result c, int64_t depth, bool accumulate) {
  Float sums[rows][vectors];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
    for (int vector = 0; vector < vectors; ++vector) sums[row][vector] = Float{};
  for (int64_t k = 0; k < depth; ++k) {
    UInt right[vectors];
#pragma GCC unroll 8
    for (int vector = 0; vector < vectors; ++vector) right[vector] = load_raw<UInt>(b + vector * lanes);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      UInt left = load_raw<Word>(a.data + row * a.row_stride) - UInt{};
#pragma GCC unroll 8
      for (int vector = 0; vector < vectors; ++vector)
        sums[row][vector] = Product::multiply_add(left, right[vector], sums[row][vector]);
    }
    a.data += a.depth_stride;
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
    for (int vector = 0; vector < vectors; ++vector) {
      float* place = c.data + row * c.row_stride + vector * lanes;
      store(place, accumulate ? load(place) + sums[row][vector] : sums[row][vector]);
    }
}

using TileFunction = void (*)(LeftOperand, const Word*, int64_t, Result, int64_t, bool);

template <class Product, int... index>
constexpr TileFunction select_tile(int64_t rows, int64_t vectors, std::integer_sequence<int, index...>) {
  constexpr TileFunction tiles[] = {
      multiply_tile<Product, index / tile_vectors + 1, index % tile_vectors + 1>...};
  return tiles[(rows - 1) * tile_vectors + vectors - 1];
}

// result [rows, columns] = left [rows, depth] * right [depth, columns], or += where accumulate is set.
// depth counts words; right starts at word row `first_depth` of its panels. Returns the multiply-adds done.
template <class Product>
int64_t multiply(LeftOperand left, Panels right, Result result, int64_t rows, int64_t columns, int64_t depth,
                 bool accumulate, int64_t first_depth = 0) {
  constexpr auto tiles = std::make_integer_sequence<int, tile_rows * tile_vectors>{};
  if (rows <= 0) return 0;
#if defined(__AMX_BF16__) || defined(VLEFF_EMULATED_TILES)
  if constexpr (Product::elements_per_word == 2) {
    multiply_by_tiles(left, right, result, rows, columns, depth, accumulate, first_depth);
    return rows * round_up(columns, lanes) * depth * Product::elements_per_word;
  }
#endif
  const int64_t bands = (rows + tile_rows - 1) / tile_rows;
  const int64_t band_rows = (rows + bands - 1) / bands;  // even: tiles of few rows wait for their sums
  int64_t done = 0;
  for (int64_t column = 0; column < columns; column += panel_width) {
    const Word* panel =
        right.data + column / panel_width * right.panel_stride + first_depth * right.row_stride;
    const int64_t vectors = (min(columns - column, panel_width) + lanes - 1) / lanes;
    for (int64_t row = 0; row < rows; row += band_rows) {
      const int64_t height = min(rows - row, band_rows);
      TileFunction tile = select_tile<Product>(height, vectors, tiles);
      tile({left.data + row * left.row_stride, left.row_stride, left.depth_stride}, panel, right.row_stride,
           {result.data + row * result.row_stride + column, result.row_stride}, depth, accumulate);
      done += height * vectors * lanes * depth * Product::elements_per_word;
    }
  }
  return done;
}

// Words of depth of one product, at most: a panel's slice stays in the first-level cache, and sums are short
// enough to stay within twice the error of MKL's, which run in several parts.
constexpr int64_t most_depth = 96;

// Calls body(first, count) for even pieces of the words of depth [first, first + depth), each at most
// most_depth long.
template <class Body>
void for_each_depth_block(int64_t first, int64_t depth, const Body& body) {
  const int64_t blocks = (depth + most_depth - 1) / most_depth;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = depth * block / blocks, end = depth * (block + 1) / blocks;
    body(first + begin, end - begin);
  }
}

}  // namespace vleff::VLEFF_ISA

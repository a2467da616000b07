#pragma once
#include "matmul_operands.h"
#if defined(VLEFF_EMULATED_TILES)  // where a test runs without AMX
#include "tile_registers_emulated.h"
#else
#include "tile_registers.h"
#endif

// Products of bfloat16 words by the tile registers of AMX: what `multiply` of matmul.h does, 16 x 16 sums at
// a time. Within a step of 16 words of depth the processor sums the products of low and of high halves apart,
// then adds both; denormal numbers count as 0.
namespace vleff::VLEFF_ISA {

constexpr int64_t most_tile_depth = 128;  // words of columns that are transposed at a time

// Words of a tile, from memory that has fewer of them: zeros beyond.
struct PaddedTile {
  alignas(64) Word words[tile_side * tile_side];

  void set_row(int64_t row, const Word* source, int64_t count) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    store_raw(words + row * tile_side, _mm512_maskz_loadu_epi32(mask, source));
  }
};

// row_tiles x column_tiles tiles of sums, at most 4, of tiles that are `rows` high.
template <int row_tiles, int column_tiles>
class TileBlock {
  static constexpr int left = TileRegisters::first_left, right = TileRegisters::first_right;
  template <int index>
  using Number = std::integral_constant<int, index>;

  // Calls body(Number<0>{}), body(Number<1>{}), ...
  template <int count, class Body>
  static void repeat(const Body& body) {
    repeat_at(body, std::make_integer_sequence<int, count>{});
  }
  template <class Body, int... index>
  static void repeat_at(const Body& body, std::integer_sequence<int, index...>) {
    (body(Number<index>{}), ...);
  }

  // One step of depth: left tiles `left_tile` words apart, right tiles tile_side words apart.
  static void step(const Word* a, int64_t left_tile, int64_t left_bytes, const Word* b, int64_t right_tile,
                   int64_t right_bytes) {
    repeat<row_tiles>([&](auto row) { load_tile<left + row>(a + row * left_tile, left_bytes); });
    repeat<column_tiles>([&](auto column) {
      constexpr int place = right + column % 2;
      load_tile<place>(b + column * right_tile, right_bytes);
      repeat<row_tiles>([&](auto row) {
        multiply_add_tiles<decltype(row)::value * column_tiles + decltype(column)::value,
                           left + decltype(row)::value, place>();
      });
    });
  }

 public:
  static void multiply(const Word* a, int64_t a_stride, const Word* b, int64_t b_stride, Result c,
                       int64_t rows, int64_t depth, bool accumulate) {
    const int64_t bytes = sizeof(Word);
    const auto for_each_sum = [&](const auto& body) {
      repeat<row_tiles>([&](auto row) {
        repeat<column_tiles>([&](auto column) {
          body(Number<decltype(row)::value * column_tiles + decltype(column)::value>{},
               c.data + row * rows * c.row_stride + column * tile_side);
        });
      });
    };
    for_each_sum([&](auto tile, float* place) {
      accumulate ? load_tile<tile>(place, c.row_stride * bytes) : clear_tile<tile>();
    });
    int64_t word = 0;
    for (; word + tile_side <= depth; word += tile_side)
      step(a + word, rows * a_stride, a_stride * bytes, b + word * b_stride, tile_side, b_stride * bytes);
    if (word < depth) {
      PaddedTile a_rest[row_tiles], b_rest[column_tiles];
      for (int64_t row = 0; row < row_tiles * rows; ++row)
        a_rest[row / rows].set_row(row % rows, a + row * a_stride + word, depth - word);
      for (int tile = 0; tile < column_tiles; ++tile)
        for (int64_t row = 0; row < tile_side; ++row) {
          const bool inside = word + row < depth;
          b_rest[tile].set_row(row, inside ? b + (word + row) * b_stride + tile * tile_side : b,
                               inside ? tile_side : 0);
        }
      constexpr int64_t whole = tile_side * tile_side;
      step(a_rest[0].words, whole, tile_row_bytes, b_rest[0].words, whole, tile_row_bytes);
    }
    for_each_sum([&](auto tile, float* place) { store_tile<tile>(place, c.row_stride * bytes); });
  }
};

// row_tiles * rows rows of the result.
template <int row_tiles>
void multiply_row_tiles(const Word* a, int64_t a_stride, Panels right, int64_t first_depth, Result result,
                        int64_t rows, int64_t columns, int64_t depth, bool accumulate) {
  constexpr int64_t most_tiles = 4 / row_tiles;
  for (int64_t column = 0, next; column < columns; column = next) {
    const int64_t start = column % panel_width;
    const int64_t tiles =
        min((min(columns - column, panel_width - start) + tile_side - 1) / tile_side, most_tiles);
    next = column + tiles * tile_side;
    const Word* b =
        right.data + column / panel_width * right.panel_stride + first_depth * right.row_stride + start;
    const Result place{result.data + column, result.row_stride};
    const auto run = [&](auto block) {
      block.multiply(a, a_stride, b, right.row_stride, place, rows, depth, accumulate);
    };
    if (tiles == 1) run(TileBlock<row_tiles, 1>{});
    if (tiles == 2) run(TileBlock<row_tiles, 2>{});
    if constexpr (row_tiles == 1) {
      if (tiles == 3) run(TileBlock<1, 3>{});
      if (tiles == 4) run(TileBlock<1, 4>{});
    }
  }
}

// At most 2 * tile_side rows of the left operand, `depth` words of each, row by row: columns of memory, which
// tiles can't load.
inline void transpose_left(LeftOperand left, int64_t rows, int64_t depth, Word* packed) {
  for (int64_t row = 0; row < rows; row += tile_side) {
    const auto mask = static_cast<__mmask16>((1u << min(rows - row, tile_side)) - 1);
    for (int64_t word = 0; word < depth; word += tile_side) {
      Float square[lanes];
      for (int64_t k = 0; k < tile_side; ++k)
        square[k] = word + k < depth
                        ? (Float)_mm512_maskz_loadu_ps(mask, left.data + row + (word + k) * left.depth_stride)
                        : Float{};
      transpose(square);
      for (int64_t k = 0; k < tile_side; ++k)
        store_raw(packed + (row + k) * most_tile_depth + word, square[k]);
    }
  }
}

inline void multiply_by_tiles(LeftOperand left, Panels right, Result result, int64_t rows, int64_t columns,
                              int64_t depth, bool accumulate, int64_t first_depth) {
  TileRegisters registers;
  // Two tiles of rows are equally high.
  for (int64_t row = 0, height; row < rows; row += height) {
    const int64_t rest = rows - row;
    const bool two = rest >= 2 * tile_side || (rest > tile_side && rest % 2 == 0);
    height = two ? min(rest, 2 * tile_side) : min(rest, tile_side);
    const int64_t tile_height = two ? height / 2 : height;
    registers.set_rows(tile_height);
    const Result place{result.data + row * result.row_stride, result.row_stride};
    const auto run = [&](const Word* a, int64_t a_stride, int64_t first, int64_t count) {
      (two ? multiply_row_tiles<2> : multiply_row_tiles<1>)(a, a_stride, right, first_depth + first, place,
                                                            tile_height, columns, count,
                                                            accumulate || first > 0);
    };
    if (left.depth_stride == 1) {
      run(left.data + row * left.row_stride, left.row_stride, 0, depth);
    } else {
      alignas(64) Word packed[2 * tile_side * most_tile_depth];
      for (int64_t first = 0; first < depth; first += most_tile_depth) {
        const int64_t count = min(depth - first, most_tile_depth);
        transpose_left({left.data + row + first * left.depth_stride, 1, left.depth_stride}, height, count,
                       packed);
        run(packed, most_tile_depth, first, count);
      }
    }
  }
}

}  // namespace vleff::VLEFF_ISA

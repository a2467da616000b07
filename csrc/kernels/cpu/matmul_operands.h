#pragma once
#include "simd.h"

// Operands and results of the project's matrix products. Operands are 32-bit words: one float32, or a pair of
// bfloat16 that are neighbours along the summed dimension (low half first).
namespace vleff::VLEFF_ISA {

typedef uint32_t Word;

// One tile of the result stays in registers: 24 of 32 accumulators (AVX-512), 12 of 16 otherwise.
constexpr int tile_rows = 6;
constexpr int tile_vectors = lanes == 16 ? 4 : 2;
constexpr int panel_width = tile_vectors * lanes;

// The left operand: word (row, depth) stands at data[row * row_stride + depth * depth_stride].
struct LeftOperand {
  const Word* data;
  int64_t row_stride, depth_stride;
};

// The right operand, in panels of panel_width columns: word row `depth` of panel p begins at
// data[p * panel_stride + depth * row_stride]; columns up to the next multiple of lanes can be read.
struct Panels {
  const Word* data;
  int64_t panel_stride, row_stride;
};

// Packed panels: [panels][depth][panel_width], 64-byte aligned, columns beyond the last anything finite.
inline Panels packed_panels(const Word* data, int64_t depth) {
  return {data, depth * panel_width, panel_width};
}
inline int64_t panel_words(int64_t columns, int64_t depth) {
  return round_up(columns, panel_width) * depth;
}

// The result: row-major float32; rows hold columns rounded up to lanes.
struct Result {
  float* data;
  int64_t row_stride;
};

// Of AMX: rows of a tile register, and words of one of its rows.
constexpr int64_t tile_side = 16;
constexpr int64_t tile_row_bytes = tile_side * static_cast<int64_t>(sizeof(Word));

}  // namespace vleff::VLEFF_ISA

#pragma once
#include <cstdio>
#include <cstdlib>

#include "kernels/cpu/matmul_operands.h"

// What kernels/cpu/tile_registers.h does, in plain C++: for processors without AMX, and so that a sanitizer
// sees each access to memory.
namespace vleff::VLEFF_ISA {

struct EmulatedTile {
  int64_t rows = 0;  // 0: not configured
  Word words[tile_side][tile_side];
};
inline EmulatedTile tiles[8];

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "tile registers: %s\n", what);
  std::abort();
}

template <int tile>
inline void load_tile(const void* data, int64_t stride_bytes) {
  require(tiles[tile].rows > 0, "loaded before they are configured");
  for (int64_t row = 0; row < tiles[tile].rows; ++row)
    for (int64_t word = 0; word < tile_side; ++word)
      tiles[tile].words[row][word] =
          *reinterpret_cast<const Word*>(static_cast<const char*>(data) + row * stride_bytes + 4 * word);
}
template <int tile>
inline void store_tile(void* data, int64_t stride_bytes) {
  require(tiles[tile].rows > 0, "stored before they are configured");
  for (int64_t row = 0; row < tiles[tile].rows; ++row)
    for (int64_t word = 0; word < tile_side; ++word)
      *reinterpret_cast<Word*>(static_cast<char*>(data) + row * stride_bytes + 4 * word) =
          tiles[tile].words[row][word];
}
template <int tile>
inline void clear_tile() {
  for (auto& row : tiles[tile].words)
    for (Word& word : row) word = 0;
}

inline float of_bits(Word bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

template <int sums, int left, int right>
inline void multiply_add_tiles() {
  require(tiles[sums].rows == tiles[left].rows && tiles[right].rows == tile_side, "of unequal heights");
  for (int64_t row = 0; row < tiles[sums].rows; ++row)
    for (int64_t column = 0; column < tile_side; ++column) {
      float low = 0, high = 0;
      for (int64_t word = 0; word < tile_side; ++word) {
        const Word a = tiles[left].words[row][word], b = tiles[right].words[word][column];
        low = __builtin_fmaf(of_bits(a << 16), of_bits(b << 16), low);
        high = __builtin_fmaf(of_bits(a & 0xFFFF0000), of_bits(b & 0xFFFF0000), high);
      }
      const float sum = of_bits(tiles[sums].words[row][column]) + (low + high);
      __builtin_memcpy(&tiles[sums].words[row][column], &sum, sizeof(sum));
    }
}

class TileRegisters {
 public:
  static constexpr int first_left = 4, first_right = 6;

  ~TileRegisters() {
    for (EmulatedTile& tile : tiles) tile.rows = 0;
  }
  void set_rows(int64_t rows) {
    require(rows >= 1 && rows <= tile_side, "of an impossible height");
    if (rows == rows_) return;
    rows_ = rows;
    for (int tile = 0; tile < 8; ++tile) {
      tiles[tile].rows = tile < first_right ? rows : tile_side;
      for (auto& row : tiles[tile].words)
        for (Word& word : row) word = 0;
    }
  }

 private:
  int64_t rows_ = 0;
};

}  // namespace vleff::VLEFF_ISA

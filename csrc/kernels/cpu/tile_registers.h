#pragma once
#include "matmul_operands.h"

// The tile registers of AMX: eight of 16 rows of 16 words.
namespace vleff::VLEFF_ISA {

// Compilers' intrinsics take tile numbers as text, not as constants.
template <int tile>
inline void load_tile(const void* data, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(data), "r"(stride_bytes), "i"(tile) : "memory");
}
template <int tile>
inline void store_tile(void* data, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(data), "r"(stride_bytes), "i"(tile) : "memory");
}
template <int tile>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}
template <int sums, int left, int right>
inline void multiply_add_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(left), "i"(right));
}

// The tile registers while it lives. Those of sums (0 to 3) and of left operands have as many rows as are
// set, those of right operands hold tile_side words of depth.
class TileRegisters {
 public:
  static constexpr int first_left = 4, first_right = 6;

  TileRegisters() = default;
  ~TileRegisters() { asm volatile("tilerelease"); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

  // Clears the registers if they had other rows.
  void set_rows(int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.row_bytes[tile] = tile_row_bytes;
      shapes.rows[tile] = static_cast<uint8_t>(tile < first_right ? rows : tile_side);
    }
    asm volatile("ldtilecfg %0" : : "m"(shapes));
  }

 private:
  int64_t rows_ = 0;
};

}  // namespace vleff::VLEFF_ISA

#pragma once
#include "matmul.h"

// Float32 blocks of gradients, on their way to the products whose operands they are, and to memory.
namespace vleff::VLEFF_ISA {

// Pairs of rows as words: (row 2i, row 2i + 1) of a float32 block, and the rows themselves in place.
template <class T>
void pair_rows(float* block, int64_t rows, int64_t stride, int64_t columns, Word* pairs) {
  for (int64_t row = 0; row < rows; row += 2)
    for (int64_t column = 0; column < columns; column += lanes) {
      Half low = narrow(load(block + row * stride + column), T{});
      Half high = row + 1 < rows ? narrow(load(block + (row + 1) * stride + column), T{}) : Half{};
      store_raw(pairs + row / 2 * stride + column,
                __builtin_convertvector(low, UInt) | __builtin_convertvector(high, UInt) << 16);
      store_raw(reinterpret_cast<T*>(block + row * stride) + column, low);
      if (row + 1 < rows) store_raw(reinterpret_cast<T*>(block + (row + 1) * stride) + column, high);
    }
}

template <class T>
void store_gradient(const float* gradient, int64_t rows, int64_t width, float factor, T* target,
                    int64_t row_stride) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < width; column += lanes)
      store_first(target + row * row_stride + column,
                  load(gradient + row * round_up(width, lanes) + column) * factor, width - column);
}

}  // namespace vleff::VLEFF_ISA

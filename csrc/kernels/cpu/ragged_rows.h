#pragma once
#include "matmul.h"

// Finding a ragged sample's rows, loading one head of them, gathered through an index where there is one, and
// packing it as an operand of a matrix product.
namespace vleff::VLEFF_ISA {

// The sample of a row: the last one that begins at or before it.
inline int64_t sample_of(const int32_t* offsets, int64_t batch, int64_t row) {
  int64_t first = 0, last = batch - 1;
  while (first < last) {
    const int64_t middle = (first + last + 1) / 2;
    if (offsets[middle] <= row)
      first = middle;
    else
      last = middle - 1;
  }
  return first;
}

template <class T>
struct RaggedRows {
  const T* data;  // row 0 of the tensor, at this head
  int64_t row_stride;
  const int32_t* index;  // row numbers of the sample's rows, or null where they follow each other
  int64_t width;         // elements a row

  const T* operator[](int64_t row) const { return data + (index ? index[row] : row) * row_stride; }
  RaggedRows from(int64_t row) const {
    return index ? RaggedRows{data, row_stride, index + row, width}
                 : RaggedRows{data + row * row_stride, row_stride, nullptr, width};
  }
};

template <class Product>
inline int64_t words(int64_t elements) {
  return (elements + Product::elements_per_word - 1) / Product::elements_per_word;
}

// A vector of words of one row, from word number `word` on; zero beyond the row's width.
template <class Product, class T>
inline UInt load_words(const T* row, int64_t word, int64_t width) {
  if constexpr (Product::elements_per_word == 1) {
    return (UInt)load_first(row + word, width - word);
  } else {
    const int64_t elements = min(width - 2 * word, 2 * lanes);
    if (elements == 2 * lanes) return load_raw<UInt>(row + 2 * word);
    Word buffer[lanes] = {};
    __builtin_memcpy(buffer, row + 2 * word, elements * sizeof(T));
    return load_raw<UInt>(buffer);
  }
}

// Left operand [rows, words(width)], row-major; rows of `packed` are `stride` words apart.
template <class Product, class T>
void pack_left(RaggedRows<T> rows, int64_t count, int64_t stride, Word* packed) {
  const int64_t row_words = words<Product>(rows.width);
  for (int64_t row = 0; row < count; ++row)
    for (int64_t word = 0; word < row_words; word += lanes)
      store_first(reinterpret_cast<float*>(packed) + row * stride + word,
                  (Float)load_words<Product>(rows[row], word, rows.width), row_words - word);
}

// The rows as a left operand: where they stand if they are words in even steps there, else packed.
template <class Product, class T>
LeftOperand left_operand(RaggedRows<T> rows, int64_t count, Word* packed) {
  constexpr int64_t elements = Product::elements_per_word;
  if constexpr (sizeof(T) * elements == sizeof(Word)) {
    if (!rows.index && rows.width % elements == 0 && rows.row_stride % elements == 0)
      return {reinterpret_cast<const Word*>(rows.data), rows.row_stride / elements, 1};
  }
  const int64_t row_words = words<Product>(rows.width);
  pack_left<Product>(rows, count, row_words, packed);
  return {packed, row_words, 1};
}

// Right operand whose columns are the rows and whose depth is the width: the transposed matrix. panel_depth
// counts words.
template <class Product, class T>
void pack_transposed(RaggedRows<T> rows, int64_t count, int64_t panel_depth, Word* packed) {
  const int64_t depth = words<Product>(rows.width);
  for (int64_t column = 0; column < count; column += lanes) {
    Word* panel = packed + column / panel_width * panel_width * panel_depth + column % panel_width;
    for (int64_t word = 0; word < depth; word += lanes) {
      Float square[lanes];
      for (int64_t row = 0; row < lanes; ++row)
        square[row] =
            column + row < count ? (Float)load_words<Product>(rows[column + row], word, rows.width) : Float{};
      transpose(square);
      for (int64_t row = 0; row < min(lanes, depth - word); ++row)
        store_raw(panel + (word + row) * panel_width, square[row]);
    }
  }
}

// A vector of words along the rows: word `word` of columns `column` and up; zero beyond the last row and
// column.
template <class Product, class T>
inline Float load_depth_words(RaggedRows<T> rows, int64_t count, int64_t word, int64_t column) {
  const int64_t left = rows.width - column;
  if constexpr (Product::elements_per_word == 1) {
    return load_first(rows[word] + column, left);
  } else {
    UInt low = (UInt)load_first(rows[2 * word] + column, left) >> 16;
    UInt high = 2 * word + 1 < count ? (UInt)load_first(rows[2 * word + 1] + column, left) : UInt{};
    return (Float)(low | high);
  }
}

// Right operand whose depth is the rows and whose columns are the width. panel_depth counts words.
template <class Product, class T>
void pack_right(RaggedRows<T> rows, int64_t count, int64_t panel_depth, Word* packed) {
  for (int64_t word = 0; word < words<Product>(count); ++word)
    for (int64_t column = 0; column < rows.width; column += lanes)
      store_raw(packed + column / panel_width * panel_width * panel_depth + word * panel_width +
                    column % panel_width,
                load_depth_words<Product>(rows, count, word, column));
}

// Left operand whose depth is the rows and whose rows are the width: [words(count)][stride], where `stride`
// is at least the width rounded up to lanes.
template <class Product, class T>
LeftOperand pack_left_transposed(RaggedRows<T> rows, int64_t count, int64_t stride, Word* packed) {
  for (int64_t word = 0; word < words<Product>(count); ++word)
    for (int64_t column = 0; column < rows.width; column += lanes)
      store_raw(packed + word * stride + column, load_depth_words<Product>(rows, count, word, column));
  return {packed, 1, stride};
}

// The rows as a right operand whose depth is the rows: where they stand if they are few and words that fill
// vectors there, else packed. Many would fall into few sets of the first-level cache.
template <class Product, class T>
Panels right_operand(RaggedRows<T> rows, int64_t count, Word* packed) {
  if constexpr (sizeof(T) == sizeof(Word)) {
    if (!rows.index && rows.width % lanes == 0 && count <= 64) {
      return {reinterpret_cast<const Word*>(rows.data), panel_width, rows.row_stride};
    }
  }
  pack_right<Product>(rows, count, words<Product>(count), packed);
  return packed_panels(packed, words<Product>(count));
}

// Fills rows x width of a tensor whose rows are `row_stride` elements apart with one value.
template <class T>
void fill_rows(T* data, int64_t rows, int64_t row_stride, int64_t width, float value) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < width; column += lanes)
      store_first(data + row * row_stride + column, broadcast(value), width - column);
}

}  // namespace vleff::VLEFF_ISA

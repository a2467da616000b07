#pragma once
#include "activation_functions.h"
#include "masked_linear_products.h"

// Chunks of rows of a sparse matrix, and what their sums pass on the way out.
namespace vleff::VLEFF_ISA {

inline int64_t blocks_of(const MaskedStructure& weight) {
  return (weight.columns + weight.column_block - 1) / weight.column_block;
}
inline int64_t chunks_of(const MaskedStructure& weight) {
  return (weight.rows + weight.row_chunk - 1) / weight.row_chunk;
}

template <class T>
Block<T> block_at(const MaskedStructure& weight, int64_t place, int64_t rows, const uint8_t* columns,
                  const void* values) {
  const bool at_end =
      weight.starts[place + rows] + read_ahead > weight.starts[weight.rows * blocks_of(weight)];
  return {rows, weight.starts + place, weight.order + place, columns, static_cast<const T*>(values), at_end};
}

// sums [rows][width of the panel] = rows [row, row + rows), a chunk, times the panel
template <int vectors, class T, class Element>
void multiply_chunk(const MaskedStructure& weight, const void* values, int64_t row, int64_t rows,
                    const Element* panel, float* sums) {
  const int64_t blocks = blocks_of(weight);
  for (int64_t block = 0; block < blocks; ++block)
    multiply_block<vectors>(
        block_at<T>(weight, row * blocks + block * rows, rows, weight.block_columns, values),
        panel + block * weight.column_block * (vectors * lanes), block == 0, sums);
}

// activation(sum + bias) + residual for features from `row` on of tokens from `token` on.
template <class T>
struct Epilogue {
  const void* bias;  // [features] or null
  Activation activation;
  const void* residual;  // [tokens, features] or null
  int64_t features, token, row;

  // sums of `count` features, from number `feature` on, of token number `index`
  Float operator()(Float sum, int64_t index, int64_t feature, int64_t count) const {
    if (bias) sum += load_first(static_cast<const T*>(bias) + row + feature, count);
    if (activation != Activation::none) sum = activate(sum, activation);
    if (residual)
      sum += load_first(static_cast<const T*>(residual) + (token + index) * features + row + feature, count);
    return sum;
  }
};

template <int value_>
struct Vectors {
  static constexpr int value = value_;
};

// Calls function(Vectors<number>) for the narrowest panel that takes `tokens`, at most panel_tokens.
template <class T, class Function>
void with_panel_vectors(int64_t tokens, const Function& function) {
  if constexpr (vectors_at_a_time<typename PanelOf<T>::Element> == 1) {
    if (tokens <= lanes) return function(Vectors<1>{});
    if (tokens > 2 * lanes && tokens <= 3 * lanes) return function(Vectors<3>{});
  }
  if (tokens <= 2 * lanes) return function(Vectors<2>{});
  function(Vectors<4>{});
}

// The tokens of part `part` of `parts`, whole groups of those that are multiplied together.
template <class T>
int64_t first_token(int64_t tokens, int64_t part, int64_t parts) {
  constexpr int64_t group = vectors_at_a_time<typename PanelOf<T>::Element> * lanes;
  return min(tokens, (tokens + group - 1) / group * part / parts * group);
}

}  // namespace vleff::VLEFF_ISA

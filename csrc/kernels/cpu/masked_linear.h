#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"
#include "activation.h"

namespace vleff {

// Where the elements of a sparse [rows, columns] matrix stand. They are ordered by chunks of rows, within
// them by blocks of columns, within them by rows, longest first, and within rows by columns.
//
// Place p of block b in chunk c is number c * row_chunk * blocks + b * (rows of the chunk) + p of `starts`
// and `order`, where blocks = columns / column_block, rounded up.
struct MaskedStructure {
  int64_t rows, columns;
  int64_t row_chunk;             // in [1, 256]
  int64_t column_block;          // in [1, 256]
  const int32_t* starts;         // [rows * blocks + 1]: the first element of the row at each place
  const uint8_t* order;          // [rows * blocks]: which row of the chunk stands at each place
  const uint8_t* block_columns;  // [elements]: the element's column in its block
};

constexpr int64_t largest_row_chunk = 256;
constexpr int64_t largest_column_block = 256;

// A copy of a weight by steps, for few tokens. Within a block of a chunk, `slice_rows` rows at neighbouring
// places make a slice; first stand the first elements of its rows, then the second ones, and so on.
constexpr int64_t slice_rows = 16;
struct MaskedSteps {
  const void* values;            // [elements], null if there is no copy
  const uint8_t* block_columns;  // [elements]
};

// out = activation(input * weight^T + bias) + residual. Arrays have the problem's type. Products of bfloat16
// are exact, sums are in float32, and only the result is rounded. No token's bits depend on the others.
struct MaskedLinearProblem {
  DataType type;
  int64_t tokens;
  MaskedStructure weight;  // rows: features out, columns: features in
  const void* values;      // [elements]
  MaskedSteps steps;
  const void* input;     // [tokens, columns]
  const void* bias;      // [rows] or null
  const void* residual;  // [tokens, rows] or null
  Activation activation;
  void* out;  // [tokens, rows]
};

// grad_values[e] = sum over tokens of grad_out[token, row of e] * input[token, column of e]
struct MaskedLinearGradValuesProblem {
  DataType type;
  int64_t tokens;
  MaskedStructure weight;
  const void* grad_out;  // [tokens, rows]
  const void* input;     // [tokens, columns]
  float* grad_values;    // [elements]
};

// scratch: 64-byte aligned, parallel.threads * scratch_bytes(...) bytes. The order of sums does not depend on
// the number of threads.
struct MaskedLinearKernels {
  // Whether numbers never descend from 0 to `last`.
  bool (*ascend)(const int32_t* numbers, int64_t count, int64_t last);
  int64_t (*scratch_bytes)(const MaskedStructure&, int64_t tokens);
  void (*run)(const MaskedLinearProblem&, void* scratch, const Parallel&);
  int64_t (*grad_values_scratch_bytes)(const MaskedStructure&);
  void (*grad_values)(const MaskedLinearGradValuesProblem&, void* scratch, const Parallel&);
};

}  // namespace vleff

#pragma once
#include <cstdint>

#include "../data_type.h"
#include "../parallel.h"

namespace vleff {

// Which heads the tokens of a ragged batch keep.
struct HeadMask {
  int64_t batch, heads;
  const int32_t* offsets;  // [batch + 1], from 0 to the number of tokens
  const uint8_t* kept;     // [batch, heads], 0 = dropped, or null: all are kept
};

// The features of all heads, and the model's width that they are made from or summed into. Feature i of a
// head in a part is number (part * heads + head) * head_dim + i.
struct HeadFeatures {
  int64_t parts, heads, head_dim, width;

  int64_t count() const { return parts * heads * head_dim; }
};

// project: out[token, feature] = <input[token], weight[feature]> + bias[feature] for kept heads, else 0
// reduce:  out[token] = residual[token] + bias + sum over features of kept heads of input[token, feature] *
// weight[feature]
enum class HeadMaskedDirection : int32_t { project, reduce };

// What a packed weight was made from and for.
struct HeadMaskedWeight {
  HeadMaskedDirection direction;
  DataType type;
  HeadFeatures features;  // reduce: one part
};

// One row of a weight for each feature: element (feature, i) is number feature * feature_stride + i *
// width_stride. One of the strides is 1.
struct HeadVectors {
  const void* data;
  int64_t feature_stride, width_stride;
};

// Arrays have the weight's type. Sums are in float32, in order of the width (project) or of the features
// (reduce), and only the result is rounded. Blocks of dropped heads are neither read nor multiplied.
struct HeadMaskedProblem {
  HeadMaskedWeight weight;
  int64_t tokens;
  HeadMask mask;
  const void* packed;      // the weight as `pack` left it, 64-byte aligned
  const void* input;       // project: [rows, width]; reduce: [tokens, features]
  const int32_t* index;    // project: [tokens], the rows of the tokens, or null where they follow each other
  const void* bias;        // project: [features]; reduce: [width]; or null
  const void* residual;    // reduce: [tokens, width] or null
  void* out;               // project: [tokens, features]; reduce: [tokens, width]
  int64_t* multiply_adds;  // what was multiplied is added here, or null
};

// grad_weight[feature] = sum over tokens that keep its head of of_features[token, feature] * of_width[token]
// grad_bias[feature]   = sum over the same tokens of of_features[token, feature]
struct HeadMaskedGradWeightProblem {
  DataType type;
  HeadFeatures features;
  int64_t tokens;
  HeadMask mask;
  const void* of_features;  // [tokens, features]
  const void* of_width;     // [rows, width]
  const int32_t* index;     // [tokens], the rows of the tokens in of_width, or null
  void* grad_weight;        // [features, width]
  void* grad_bias;          // [features] or null
  int64_t* multiply_adds;   // as above
};

// scratch: 64-byte aligned, parallel.threads * ..._scratch_bytes(...) bytes. The order of sums does not
// depend on the number of threads.
//
// A multiply-add with a whole vector of lanes counts as many: columns of a head (project; all its parts side
// by side) and of the width (reduce, grad_weight) are rounded up to `lanes`, and depth (project: the width;
// reduce: a head's features; grad_weight: neighbouring tokens of samples that keep the head) to
// `elements_per_word`.
struct HeadMaskedLinearKernels {
  // Of the products of a type: how many elements stand in a word, and how many words in a vector.
  int64_t (*elements_per_word)(DataType);
  int64_t lanes;

  int64_t (*packed_bytes)(const HeadMaskedWeight&);
  // Heads that no sample keeps may be left out; their part of `packed` is not written.
  void (*pack)(const HeadMaskedWeight&, const HeadVectors&, const HeadMask&, void* packed, const Parallel&);

  int64_t (*scratch_bytes)(const HeadMaskedProblem&);
  void (*run)(const HeadMaskedProblem&, void* scratch, const Parallel&);

  int64_t (*grad_weight_scratch_bytes)(const HeadMaskedGradWeightProblem&);
  void (*grad_weight)(const HeadMaskedGradWeightProblem&, void* scratch, const Parallel&);
};

}  // namespace vleff

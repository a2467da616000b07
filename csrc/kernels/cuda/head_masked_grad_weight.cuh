#pragma once
#include "head_masked_linear.cuh"

namespace vleff::cuda {

// Some of one feature block's features, by some of the width; the depth is the tokens, in order.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 2)
    head_masked_grad_weight(const __grid_constant__ HeadMaskedGradWeightProblem problem) {
  using T = typename Tile::Element;
  using Left = LeftTile<Tile, true>;
  using Right = RightTile<Tile, true>;
  const HeadFeatures& f = problem.features;
  const int tokens = static_cast<int>(problem.tokens), head_dim = static_cast<int>(f.head_dim);
  const int row_tiles = tiles_in(head_dim, Tile::rows), column_tiles = tiles_in(f.width, Tile::columns);
  const int first_column = static_cast<int>(blockIdx.x % column_tiles) * Tile::columns;
  const int of_features = static_cast<int>(blockIdx.x / column_tiles);
  const int block = of_features / row_tiles, first_row = of_features % row_tiles * Tile::rows;
  const int first_feature = block * head_dim + first_row;
  const int rows = head_dim - first_row, columns = static_cast<int>(f.width) - first_column;
  const int64_t features = features_of(f);

  extern __shared__ __align__(128) unsigned char shared[];
  const Lane lane;
  const T* const of_feature_rows = static_cast<const T*>(problem.of_features) + first_feature;
  const T* const of_width_rows = static_cast<const T*>(problem.of_width) + first_column;

  // Some tokens of which any keeps the head.
  struct Depth {
    int first;
    bool present;
    KeptTokens kept;
  };
  const int head = block % static_cast<int>(f.heads);
  const auto find_tokens = [&](int first) {
    Depth depth{first, false, {}};
    for (; depth.first < tokens; depth.first += Tile::depth) {
      const TokenSamples<Tile::depth> samples(problem.mask, tokens, depth.first, lane);
      depth.kept = KeptTokens::of(problem.mask, samples, head);
      depth.present = depth.kept.any();
      if (depth.present) break;
    }
    return depth;
  };
  const auto next = [&](const Depth& depth) { return find_tokens(depth.first + Tile::depth); };
  const auto load = [&](const Depth& depth, unsigned char* left, unsigned char* right) {
    load_operand<Left, Tile::threads>(left, [&](int token, int row) -> LinePiece<T> {
      if (!depth.kept.has(token) || row >= rows) return {of_feature_rows, 0};
      return {of_feature_rows + (depth.first + token) * features + row, rows - row};
    });
    load_operand<Right, Tile::threads>(right, [&](int token, int column) -> LinePiece<T> {
      if (!depth.kept.has(token) || column >= columns || problem.stored == 0) return {of_width_rows, 0};
      const int64_t stored = stored_row(problem.index, problem.stored, depth.first + token);
      return {of_width_rows + stored * f.width + column, columns - column};
    });
  };
  const bool with_bias = problem.grad_bias && first_column == 0 && threadIdx.x < Tile::rows;
  float bias = 0.0f;
  TileSums<Tile> sums = {};
  multiply_along<Tile, Left, Right>(
      find_tokens(0), shared, lane, next, load,
      [&](const TileSums<Tile>& product, const Depth&, unsigned char* left) {
        add_sums<Tile>(sums, product);
        if (!with_bias) return;
        const int row = threadIdx.x;
        float sum = 0.0f;
        for (int token = 0; token < Tile::depth; ++token) {
          sum += static_cast<float>(reinterpret_cast<const T*>(
              Left::chunk(left, token, row / Left::chunk_elements))[row % Left::chunk_elements]);
        }
        bias += sum;
      });

  store_sums<Tile>(sums, shared, lane, [&](int row, int column, float (&values)[Tile::chunk_elements]) {
    if (row >= rows || column >= columns) return;
    store_elements(
        static_cast<T*>(problem.grad_weight) + (first_feature + row) * f.width + first_column + column,
        values, columns - column);
  });
  if (with_bias && static_cast<int>(threadIdx.x) < rows) {
    static_cast<T*>(problem.grad_bias)[first_feature + threadIdx.x] = static_cast<T>(bias);
  }
}

}  // namespace vleff::cuda

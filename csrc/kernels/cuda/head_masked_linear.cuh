#pragma once
#include "head_masked_linear_problem.h"
#include "product_tiles.cuh"

// The products of head_masked_linear. A feature block is the features of one head in one part; blocks of
// threads take whole tiles of one feature block, so that a dropped head costs nothing where all tokens of a
// tile drop it.
namespace vleff::cuda {

__device__ __forceinline__ bool keeps(const HeadMask& mask, int sample, int head) {
  return sample >= 0 && (!mask.kept || mask.kept[sample * mask.heads + head]);
}

// The samples of up to 64 neighbouring tokens, two with each lane of every warp.
template <int count>
struct TokenSamples {
  static_assert(count % warp_size == 0 && count <= 64);
  static constexpr int words = count / warp_size;
  int samples[words];

  __device__ TokenSamples(const HeadMask& mask, int64_t tokens, int first, const Lane& lane) {
#pragma unroll
    for (int word = 0; word < words; ++word) {
      const int token = first + word * warp_size + lane.number;
      samples[word] = token < tokens ? sample_of(mask.offsets, mask.batch, token) : -1;
    }
  }
};

// Which of the tokens keep a head, one bit each.
struct KeptTokens {
  uint64_t bits;

  template <int count>
  static __device__ KeptTokens of(const HeadMask& mask, const TokenSamples<count>& tokens, int head) {
    uint64_t bits = 0;
#pragma unroll
    for (int word = 0; word < count / warp_size; ++word) {
      const uint32_t kept = __ballot_sync(whole_warp, keeps(mask, tokens.samples[word], head));
      bits |= static_cast<uint64_t>(kept) << word * warp_size;
    }
    return {bits};
  }
  __device__ bool any() const { return bits != 0; }
  __device__ bool has(int token) const { return bits >> token & 1; }
};

__device__ __forceinline__ int64_t features_of(const HeadFeatures& features) {
  return features.parts * features.heads * features.head_dim;
}

// Blocks that a multiprocessor's registers have to hold: more hide the waits of each other.
template <class Tile>
constexpr int least_blocks = sizeof(typename Tile::Element) == 2 ? 4 : 2;

// One tile of tokens, of one feature block's features.
template <class Tile, bool weight_by_depth>
__global__ void __launch_bounds__(Tile::threads, least_blocks<Tile>)
    head_masked_project(const __grid_constant__ HeadMaskedProblem problem) {
  using T = typename Tile::Element;
  using Left = LeftTile<Tile, false>;
  using Right = RightTile<Tile, weight_by_depth>;
  const HeadFeatures& f = problem.features;
  const int tokens = static_cast<int>(problem.tokens), head_dim = static_cast<int>(f.head_dim),
            width = static_cast<int>(f.width);
  const int token_tiles = tiles_in(tokens, Tile::rows), column_tiles = tiles_in(head_dim, Tile::columns);
  const int first_token = static_cast<int>(blockIdx.x % token_tiles) * Tile::rows;
  const int of_features = static_cast<int>(blockIdx.x / token_tiles);
  const int block = of_features / column_tiles, first_column = of_features % column_tiles * Tile::columns;
  const int first_feature = block * head_dim + first_column, columns = head_dim - first_column;

  extern __shared__ __align__(128) unsigned char shared[];
  const Lane lane;
  const TokenSamples<Tile::rows> samples(problem.mask, tokens, first_token, lane);
  const KeptTokens kept = KeptTokens::of(problem.mask, samples, block % static_cast<int>(f.heads));
  const T* const input = static_cast<const T*>(problem.input);
  const T* const weight = static_cast<const T*>(problem.weight.data);

  struct Depth {
    int first;
    bool present;
  };
  const auto next = [&](const Depth& depth) {
    return Depth{depth.first + Tile::depth, depth.first + Tile::depth < width};
  };
  const auto load = [&](const Depth& depth, unsigned char* left, unsigned char* right) {
    load_operand<Left, Tile::threads>(left, [&](int row, int element) -> LinePiece<T> {
      if (!kept.has(row) || depth.first + element >= width || problem.stored == 0) return {input, 0};
      const int64_t stored = stored_row(problem.index, problem.stored, first_token + row);
      return {input + stored * width + depth.first + element, width - depth.first - element};
    });
    load_operand<Right, Tile::threads>(right, [&](int line, int element) -> LinePiece<T> {
      const int column = weight_by_depth ? element : line, place = weight_by_depth ? line : element;
      if (column >= columns || depth.first + place >= width) return {weight, 0};
      return {weight + (first_feature + column) * problem.weight.feature_stride +
                  (depth.first + place) * problem.weight.width_stride,
              weight_by_depth ? columns - column : width - depth.first - place};
    });
  };
  TileSums<Tile> sums = {};
  multiply_along<Tile, Left, Right>(
      Depth{0, kept.any()}, shared, lane, next, load,
      [&](const TileSums<Tile>& product, const Depth&, unsigned char*) { add_sums<Tile>(sums, product); });

  const int64_t features = features_of(f);
  store_sums<Tile>(sums, shared, lane, [&](int row, int column, float (&values)[Tile::chunk_elements]) {
    if (first_token + row >= tokens || column >= columns) return;  // project
    const int count = columns - column;
    const int64_t feature = first_feature + column;
    if (!kept.has(row)) {
#pragma unroll
      for (float& value : values) value = 0.0f;
    } else if (problem.bias) {
      add_elements(values, static_cast<const T*>(problem.bias) + feature, count);
    }
    store_elements(static_cast<T*>(problem.out) + (first_token + row) * features + feature, values, count);
  });
}

// One tile of tokens, of some of the width.
template <class Tile, bool weight_by_depth>
__global__ void __launch_bounds__(Tile::threads, least_blocks<Tile> * 3 / 4)
    head_masked_reduce(const __grid_constant__ HeadMaskedProblem problem) {
  using T = typename Tile::Element;
  using Left = LeftTile<Tile, false>;
  using Right = RightTile<Tile, weight_by_depth>;
  using Samples = TokenSamples<Tile::rows>;
  const HeadFeatures& f = problem.features;
  const int tokens = static_cast<int>(problem.tokens), head_dim = static_cast<int>(f.head_dim);
  const int token_tiles = tiles_in(tokens, Tile::rows);
  const int first_token = static_cast<int>(blockIdx.x % token_tiles) * Tile::rows;
  const int first_column = static_cast<int>(blockIdx.x / token_tiles) * Tile::columns;
  const int columns = static_cast<int>(f.width) - first_column;
  const int64_t features = features_of(f);

  extern __shared__ __align__(128) unsigned char shared[];
  const Lane lane;
  const Samples samples(problem.mask, tokens, first_token, lane);
  const T* const input = static_cast<const T*>(problem.input);
  const T* const weight = static_cast<const T*>(problem.weight.data);

  // Some features of a head that any of the tokens keeps.
  struct Depth {
    int head, first;
    bool present;
    KeptTokens kept;
  };
  const auto find_head = [&](int head) {
    Depth depth{head, 0, false, {}};
    for (; depth.head < f.heads; ++depth.head) {
      depth.kept = KeptTokens::of(problem.mask, samples, depth.head);
      depth.present = depth.kept.any();
      if (depth.present) break;
    }
    return depth;
  };
  const auto next = [&](Depth depth) {
    depth.first += Tile::depth;
    return depth.first < head_dim ? depth : find_head(depth.head + 1);
  };
  const auto load = [&](const Depth& depth, unsigned char* left, unsigned char* right) {
    const int first_feature = depth.head * head_dim + depth.first, present = head_dim - depth.first;
    load_operand<Left, Tile::threads>(left, [&](int row, int element) -> LinePiece<T> {
      if (!depth.kept.has(row) || element >= present) return {input, 0};
      return {input + (first_token + row) * features + first_feature + element, present - element};
    });
    load_operand<Right, Tile::threads>(right, [&](int line, int element) -> LinePiece<T> {
      const int column = weight_by_depth ? element : line, feature = weight_by_depth ? line : element;
      if (column >= columns || feature >= present) return {weight, 0};
      return {weight + (first_feature + feature) * problem.weight.feature_stride +
                  (first_column + column) * problem.weight.width_stride,
              weight_by_depth ? columns - column : present - feature};
    });
  };
  // A token adds what its own sample keeps, whatever other tokens of the tile keep.
  TileSums<Tile> sums = {};
  const WarpPlace<Tile> place(lane);
  multiply_along<Tile, Left, Right>(find_head(0), shared, lane, next, load,
                                    [&](const TileSums<Tile>& product, const Depth& depth, unsigned char*) {
#pragma unroll
                                      for (int i = 0; i < Tile::row_fragments; ++i) {
#pragma unroll
                                        for (int half = 0; half < 2; ++half) {
                                          const bool kept =
                                              depth.kept.has(place.row + 16 * i + lane.group + 8 * half);
#pragma unroll
                                          for (int j = 0; j < Tile::column_fragments; ++j) {
#pragma unroll
                                            for (int e = 2 * half; e < 2 * half + 2; ++e)
                                              sums[i][j][e] += kept ? product[i][j][e] : 0.0f;
                                          }
                                        }
                                      }
                                    });

  store_sums<Tile>(sums, shared, lane, [&](int row, int column, float (&values)[Tile::chunk_elements]) {
    if (first_token + row >= tokens || column >= columns) return;
    const int count = columns - column;
    const int64_t place = (first_token + row) * f.width + first_column + column;
    if (problem.bias)
      add_elements(values, static_cast<const T*>(problem.bias) + first_column + column, count);
    if (problem.residual) add_elements(values, static_cast<const T*>(problem.residual) + place, count);
    store_elements(static_cast<T*>(problem.out) + place, values, count);
  });
}

}  // namespace vleff::cuda

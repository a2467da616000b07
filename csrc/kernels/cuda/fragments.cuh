#pragma once
#include "ragged_tiles.cuh"

// Parts of matrices that are wider than a tile: loading them, left operands for multiply_weights from them,
// and stores from sums.
namespace vleff::cuda {

// Starts loading rows [first, first + rows) of the sample, `columns` columns from `column` on; all others
// become 0.
template <class Tile, int rows>
__device__ __forceinline__ void load_slice(unsigned char* target, const void* matrix, int64_t stride,
                                           const RaggedSide& side, const SampleRows& sample, int first,
                                           int64_t column, int64_t columns) {
  using T = typename Tile::Element;
  const HeadOperand<T> operand({static_cast<const T*>(matrix) + column, stride, 0}, 0);
  load_rows<Tile, rows>(target, operand, side, sample, first,
                        static_cast<int>(min(columns, static_cast<int64_t>(Tile::width))));
}

template <class Tile>
__device__ __forceinline__ float element_of(unsigned char* rows, int row, int column) {
  const unsigned char* const chunk = chunk_address<Tile>(rows, row, column / Tile::chunk_elements);
  return static_cast<float>(
      reinterpret_cast<const typename Tile::Element*>(chunk)[column % Tile::chunk_elements]);
}

// This warp's 16 stationary rows, of all columns.
template <class Tile>
__device__ __forceinline__ void load_weights(SumFragment (&weights)[Tile::width / 8],
                                             unsigned char* stationary, const Lane& lane) {
#pragma unroll
  for (int j = 0; j < Tile::width / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = lane.warp * 16 + lane.group + e / 2 * 8, column = 8 * j + 2 * lane.thread + e % 2;
      weights[j][e] = element_of<Tile>(stationary, row, column);
    }
  }
}

// This warp's 16 columns of all streamed rows, transposed.
template <class Tile>
__device__ __forceinline__ void load_weights_transposed(SumFragment (&weights)[Tile::streamed_rows / 8],
                                                        unsigned char* streamed, const Lane& lane) {
#pragma unroll
  for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = 8 * j + 2 * lane.thread + e % 2, column = lane.warp * 16 + lane.group + e / 2 * 8;
      weights[j][e] = element_of<Tile>(streamed, row, column);
    }
  }
}

// Stores up to `present` of two neighbours; `place` is the first one's number in aligned memory.
template <class T>
__device__ __forceinline__ void store_pair(T* data, int64_t place, const float (&values)[2], int present) {
  if (present >= 2 && place % 2 == 0) {
    *reinterpret_cast<typename Pair<T>::Type*>(data + place) = Pair<T>::of(values[0], values[1]);
    return;
  }
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (e < present) data[place + e] = static_cast<T>(values[e]);
  }
}

}  // namespace vleff::cuda

#pragma once
#include "ragged_tiles.cuh"

// Products of matrices by blocks: tiles of two operands in shared memory, multiplied by tensor cores while
// the next two are loaded.
namespace vleff::cuda {

__host__ __device__ constexpr int tiles_in(int64_t length, int tile) {
  return static_cast<int>((length + tile - 1) / tile);
}

// A block makes `rows` x `columns` sums, over `depth` at a time; each of four warps a quarter of them.
template <class T, int rows_, int columns_, int depth_>
struct ProductTile {
  using Element = T;
  static constexpr int rows = rows_, columns = columns_, depth = depth_;
  static constexpr int chunk_elements = 16 / sizeof(T);
  static constexpr int threads = 4 * warp_size;
  static constexpr int row_fragments = rows / 32, column_fragments = columns / 16;  // of a warp
  static constexpr int steps = depth * static_cast<int>(sizeof(T)) / 32;            // of one multiplication
};

// One warp's sums.
template <class Tile>
using TileSums = SumFragment[Tile::row_fragments][Tile::column_fragments];

// An operand's part of a tile: `rows` rows of the product (the right operand: columns) by `depth`. A line of
// memory is a row, or, where `by_depth`, all rows at one depth. Chunks of 16 bytes are mixed with the number
// of their line so that what lanes read together spans all banks: one chunk of eight lines, or, of float32 by
// depth, two chunks of four.
template <class T, int rows, int depth, bool by_depth_>
struct OperandTile {
  using Element = T;
  static constexpr bool by_depth = by_depth_;
  static constexpr int lines = by_depth ? depth : rows;
  static constexpr int line_elements = by_depth ? rows : depth;
  static constexpr int chunk_elements = 16 / sizeof(T), chunks = line_elements / chunk_elements;
  static constexpr int bytes = rows * depth * static_cast<int>(sizeof(T));

  static __device__ __forceinline__ unsigned char* chunk(unsigned char* tile, int line, int chunk) {
    const int mixed = chunk ^ (by_depth && sizeof(T) == 4 ? line % 4 * 2 : line % 8);
    return tile + (line * chunks + mixed) * 16;
  }
  static __device__ __forceinline__ uint32_t word(unsigned char* tile, int line, int element) {
    return reinterpret_cast<const uint32_t*>(chunk(tile, line, element / 4))[element % 4];
  }
};

template <class Tile, bool by_depth>
using LeftTile = OperandTile<typename Tile::Element, Tile::rows, Tile::depth, by_depth>;
template <class Tile, bool by_depth>
using RightTile = OperandTile<typename Tile::Element, Tile::columns, Tile::depth, by_depth>;

// Elements of a line, from `data` on; those past `count` are 0. data is never null.
template <class T>
struct LinePiece {
  const T* data;
  int count;
};

// Starts loading an operand's part: piece(line, element) tells what stands from `element` of a line on.
template <class Operand, int threads, class Piece>
__device__ __forceinline__ void load_operand(unsigned char* tile, const Piece& piece) {
  using T = typename Operand::Element;
  constexpr int all = Operand::lines * Operand::chunks;
  constexpr int unrolled = sizeof(T) == 2 ? all / threads : 1;  // float32 needs its registers for sums
  static_assert(all % threads == 0);
#pragma unroll(unrolled)  // what does not change along the depth is then computed once
  for (int part = 0; part < all; part += threads) {
    const int i = part + threadIdx.x, line = i / Operand::chunks, chunk = i % Operand::chunks;
    unsigned char* const address = Operand::chunk(tile, line, chunk);
    const LinePiece<T> source = piece(line, chunk * Operand::chunk_elements);
    const int count = max(0, min(source.count, Operand::chunk_elements));
    if (reinterpret_cast<uintptr_t>(source.data) % 16 == 0) {
      copy_async<16>(address, source.data, count * static_cast<int>(sizeof(T)));
    } else {
      alignas(16) T values[Operand::chunk_elements];
#pragma unroll
      for (int e = 0; e < Operand::chunk_elements; ++e) {
        values[e] = e < count ? source.data[e] : static_cast<T>(0.0f);
      }
      *reinterpret_cast<uint4*>(address) = *reinterpret_cast<const uint4*>(values);
    }
  }
}

// Writes an operand's part: values(line, element, chunk of float32) tells what stands from `element` of a
// line on.
template <class Operand, int threads, class Values>
__device__ __forceinline__ void fill_operand(unsigned char* tile, const Values& values) {
  using T = typename Operand::Element;
  for (int i = threadIdx.x; i < Operand::lines * Operand::chunks; i += threads) {
    const int line = i / Operand::chunks, chunk = i % Operand::chunks;
    float wide[Operand::chunk_elements] = {};
    values(line, chunk * Operand::chunk_elements, wide);
    alignas(16) T rounded[Operand::chunk_elements];
#pragma unroll
    for (int e = 0; e < Operand::chunk_elements; ++e) rounded[e] = static_cast<T>(wide[e]);
    *reinterpret_cast<uint4*>(Operand::chunk(tile, line, chunk)) = *reinterpret_cast<const uint4*>(rounded);
  }
}

// Rows `row` to row + 15 over the 32 bytes of depth number `step`.
template <class Operand>
__device__ __forceinline__ void load_left(LeftFragment& left, unsigned char* tile, int row, int step,
                                          const Lane& lane) {
  if constexpr (!Operand::by_depth) {
    load_matrices(left, Operand::chunk(tile, row + lane.number % 16, 2 * step + lane.number / 16));
  } else if constexpr (sizeof(typename Operand::Element) == 2) {
    load_matrices_transposed(left, Operand::chunk(tile, 16 * step + lane.number % 8 + lane.number / 16 * 8,
                                                  row / 8 + lane.number / 8 % 2));
  } else {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      left[word] =
          Operand::word(tile, 8 * step + lane.thread + word / 2 * 4, row + lane.group + word % 2 * 8);
    }
  }
}

// Columns `column` to column + 7, and the next eight, over the 32 bytes of depth number `step`.
template <class Operand>
__device__ __forceinline__ void load_right(RightFragment& first, RightFragment& second, unsigned char* tile,
                                           int column, int step, const Lane& lane) {
  uint32_t words[4];
  if constexpr (!Operand::by_depth) {
    load_matrices(words, Operand::chunk(tile, column + lane.number % 8 + lane.number / 16 * 8,
                                        2 * step + lane.number / 8 % 2));
  } else if constexpr (sizeof(typename Operand::Element) == 2) {
    load_matrices_transposed(
        words, Operand::chunk(tile, 16 * step + lane.number % 16, column / 8 + lane.number / 16));
  } else {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      words[word] =
          Operand::word(tile, 8 * step + lane.thread + word % 2 * 4, column + lane.group + word / 2 * 8);
    }
  }
  first[0] = words[0], first[1] = words[1];
  second[0] = words[2], second[1] = words[3];
}

// Where a warp's sums stand in the tile.
template <class Tile>
struct WarpPlace {
  int row, column;
  __device__ explicit WarpPlace(const Lane& lane)
      : row(lane.warp / 2 * Tile::rows / 2), column(lane.warp % 2 * Tile::columns / 2) {}
};

// sums += left * right over one tile's depth.
template <class Tile, class Left, class Right>
__device__ __forceinline__ void multiply_tiles(TileSums<Tile>& sums, unsigned char* left_tile,
                                               unsigned char* right_tile, const Lane& lane) {
  const WarpPlace<Tile> place(lane);
#pragma unroll
  for (int step = 0; step < Tile::steps; ++step) {
    LeftFragment left[Tile::row_fragments];
    RightFragment right[Tile::column_fragments];
#pragma unroll
    for (int i = 0; i < Tile::row_fragments; ++i) {
      load_left<Left>(left[i], left_tile, place.row + 16 * i, step, lane);
    }
#pragma unroll
    for (int j = 0; j < Tile::column_fragments; j += 2) {
      load_right<Right>(right[j], right[j + 1], right_tile, place.column + 8 * j, step, lane);
    }
#pragma unroll
    for (int i = 0; i < Tile::row_fragments; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::column_fragments; ++j) {
        add_product<typename Tile::Element>(sums[i][j], left[i], right[j]);
      }
    }
  }
}

// Two buffers of both operands; what leaves is staged in the same memory.
template <class Tile>
constexpr int product_shared_bytes =
    2 * (Tile::rows + Tile::columns) * Tile::depth * static_cast<int>(sizeof(typename Tile::Element));

// The product's loop along the depth. `depth` names a tile of it and whether it is `present`; next(depth) is
// the one after it. load(depth, left tile, right tile) starts loading, use(product, depth, left tile) gets
// the product of this tile alone: it is summed from 0 and then added, so that rounding does not grow with the
// whole depth.
template <class Tile, class Left, class Right, class Depth, class Next, class Load, class Use>
__device__ __forceinline__ void multiply_along(Depth depth, unsigned char* shared, const Lane& lane,
                                               const Next& next, const Load& load, const Use& use) {
  constexpr int bytes = Left::bytes + Right::bytes;
  if (depth.present) load(depth, shared, shared + Left::bytes);
  for (int buffer = 0; depth.present; buffer ^= 1) {
    unsigned char* const left = shared + buffer * bytes;
    wait_for_copies();
    __syncthreads();  // the tiles are in, and every warp has left the other buffer
    const Depth following = next(depth);
    if (following.present) {
      unsigned char* const other = shared + (buffer ^ 1) * bytes;
      load(following, other, other + Left::bytes);
    }
    TileSums<Tile> product = {};
    multiply_tiles<Tile, Left, Right>(product, left, left + Left::bytes, lane);
    use(product, depth, left);
    depth = following;
  }
  __syncthreads();  // every warp has left the tiles
}

template <class Tile>
__device__ __forceinline__ void add_sums(TileSums<Tile>& sums, const TileSums<Tile>& product) {
#pragma unroll
  for (int i = 0; i < Tile::row_fragments; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::column_fragments; ++j) add(sums[i][j], product[i][j]);
  }
}

// Brings the sums of all warps to shared memory and calls store(row, column, values, count) for pieces of
// chunk_elements neighbours of a row of the tile.
template <class Tile, class Store>
__device__ __forceinline__ void store_sums(const TileSums<Tile>& sums, unsigned char* shared,
                                           const Lane& lane, const Store& store) {
  using Staged = OperandTile<float, Tile::rows, Tile::columns, false>;
  static_assert(Staged::bytes <= product_shared_bytes<Tile>);
  const WarpPlace<Tile> place(lane);
#pragma unroll
  for (int i = 0; i < Tile::row_fragments; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::column_fragments; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = place.row + 16 * i + lane.group + 8 * half;
        const int column = place.column + 8 * j + 2 * lane.thread;
        reinterpret_cast<float2*>(Staged::chunk(shared, row, column / 4))[column % 4 / 2] = {
            sums[i][j][2 * half], sums[i][j][2 * half + 1]};
      }
    }
  }
  __syncthreads();  // all sums are staged
  constexpr int pieces = Tile::columns / Tile::chunk_elements;
  for (int i = threadIdx.x; i < Tile::rows * pieces; i += Tile::threads) {
    const int row = i / pieces, column = i % pieces * Tile::chunk_elements;
    float values[Tile::chunk_elements];
#pragma unroll
    for (int e = 0; e < Tile::chunk_elements; e += 4) {
      *reinterpret_cast<float4*>(values + e) =
          *reinterpret_cast<const float4*>(Staged::chunk(shared, row, (column + e) / 4));
    }
    store(row, column, values);
  }
}

// Adds up to chunk_elements elements to values.
template <class T, int elements>
__device__ __forceinline__ void add_elements(float (&values)[elements], const T* source, int count) {
  if (reinterpret_cast<uintptr_t>(source) % 16 == 0 && count >= elements) {
    const uint4 chunk = *reinterpret_cast<const uint4*>(source);
    const T* const added = reinterpret_cast<const T*>(&chunk);
#pragma unroll
    for (int e = 0; e < elements; ++e) values[e] += static_cast<float>(added[e]);
  } else {
#pragma unroll
    for (int e = 0; e < elements; ++e) {
      if (e < count) values[e] += static_cast<float>(source[e]);
    }
  }
}

template <class T, int elements>
__device__ __forceinline__ void store_elements(T* target, const float (&values)[elements], int count) {
  alignas(16) T rounded[elements];
#pragma unroll
  for (int e = 0; e < elements; ++e) rounded[e] = static_cast<T>(values[e]);
  store_chunk(target, *reinterpret_cast<const uint4*>(rounded), count,
              reinterpret_cast<uintptr_t>(target) % 16 == 0);
}

}  // namespace vleff::cuda

#pragma once
#include "masked_linear_problem.h"
#include "ragged_tiles.cuh"

// Tiles of a sparse matrix: a part of a chunk's rows by a block of columns.
namespace vleff::cuda {

// Up to `part_rows` rows of one chunk.
struct ChunkPart {
  int64_t chunk_row, chunk_places;  // the chunk's first row, and first place
  int chunk_rows, first, rows;      // rows of the chunk; the part's first among them; the part's, 0 for none

  static __host__ __device__ int64_t chunks(const MaskedStructure& structure) {
    return (structure.rows + structure.row_chunk - 1) / structure.row_chunk;
  }
  static __host__ __device__ int64_t column_blocks(const MaskedStructure& structure) {
    return (structure.columns + structure.column_block - 1) / structure.column_block;
  }
  // Parts of all chunks; the last ones of the last chunk may be empty.
  static __host__ __device__ int64_t count(const MaskedStructure& structure, int part_rows) {
    return chunks(structure) * ((structure.row_chunk + part_rows - 1) / part_rows);
  }

  __device__ ChunkPart(const MaskedStructure& structure, int64_t number, int part_rows) {
    const int64_t parts = (structure.row_chunk + part_rows - 1) / part_rows;
    chunk_row = number / parts * structure.row_chunk;
    chunk_places = chunk_row * column_blocks(structure);
    chunk_rows = static_cast<int>(min(structure.row_chunk, structure.rows - chunk_row));
    first = static_cast<int>(number % parts) * part_rows;
    rows = max(0, min(part_rows, chunk_rows - first));
  }
};

// The columns of one block.
struct BlockColumns {
  int64_t first;
  int count;

  __device__ BlockColumns(const MaskedStructure& structure, int64_t block)
      : first(block * structure.column_block),
        count(static_cast<int>(min(structure.column_block, structure.columns - first))) {}
};

// Calls act(row, first element, end) for each row of the part in a block of columns, the warps of a thread
// block taking rows in turn. Rows count from the part's first one.
template <int warps, class Act>
__device__ __forceinline__ void for_each_row(const SparseMatrix& matrix, const ChunkPart& part, int64_t block,
                                             const Lane& lane, const Act& act) {
  const MaskedStructure& structure = matrix.structure;
  const int elements = static_cast<int>(matrix.elements);
  const int64_t places = part.chunk_places + block * part.chunk_rows;
  // A lane reads the numbers of one of its warp's next 32 rows.
  for (int start = lane.warp; start < part.chunk_rows; start += warps * warp_size) {
    const int own = min(start + lane.number * warps, part.chunk_rows - 1);
    const int own_row = structure.order[places + own] - part.first;
    const int own_begin = min(max(structure.starts[places + own], 0), elements);
    const int own_end = min(max(structure.starts[places + own + 1], own_begin), elements);
    for (int i = 0; i < warp_size && start + i * warps < part.chunk_rows; ++i) {
      const int row = __shfl_sync(whole_warp, own_row, i);
      const int begin = __shfl_sync(whole_warp, own_begin, i), end = __shfl_sync(whole_warp, own_end, i);
      if (row >= 0 && row < part.rows) act(row, begin, end);
    }
  }
}

// Writes the part's dense rows in a block of columns to shared memory, from their elements.
template <class Tile>
__device__ __forceinline__ void expand_rows(unsigned char* target, const SparseMatrix& matrix,
                                            const typename Tile::Element* values, const ChunkPart& part,
                                            int64_t block, const Lane& lane) {
  using T = typename Tile::Element;
  for_each_row<Tile::threads / warp_size>(matrix, part, block, lane, [&](int row, int begin, int end) {
    for (int chunk = lane.number; chunk < Tile::chunks; chunk += warp_size) {
      *reinterpret_cast<uint4*>(chunk_address<Tile>(target, row, chunk)) = uint4{};
    }
    __syncwarp();  // the zeros are in before the elements
    for (int e = begin + lane.number; e < end; e += warp_size) {
      const int column = matrix.structure.block_columns[e];
      if (column >= Tile::width) continue;
      unsigned char* const chunk = chunk_address<Tile>(target, row, column / Tile::chunk_elements);
      reinterpret_cast<T*>(chunk)[column % Tile::chunk_elements] = values[e];
    }
  });
}

// All tokens as one sample.
__device__ __forceinline__ RaggedSide all_tokens(int64_t tokens) {
  return {nullptr, {nullptr, false}, tokens, tokens, tokens};
}

}  // namespace vleff::cuda

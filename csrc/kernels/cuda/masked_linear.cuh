#pragma once
#include "activation.cuh"
#include "fragments.cuh"
#include "sparse_tiles.cuh"

namespace vleff::cuda {

template <class Tile>
constexpr int masked_linear_shared_bytes = 2 * (Tile::stationary_bytes + Tile::streamed_bytes);

// The weight is read sparse and multiplied dense: a block of threads takes some tokens and a part of a
// chunk's rows, and walks over the blocks of columns. Elements are written among zeros in shared memory,
// where tensor cores find a dense tile.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    masked_linear_forward(const __grid_constant__ SparseLinearProblem problem) {
  using T = typename Tile::Element;
  const MaskedStructure& structure = problem.weight.structure;
  const int64_t token_tiles = (problem.tokens + Tile::stationary_rows - 1) / Tile::stationary_rows;
  const int first_token = static_cast<int>(blockIdx.x % token_tiles) * Tile::stationary_rows;
  const ChunkPart part(structure, blockIdx.x / token_tiles, Tile::streamed_rows);
  if (part.rows == 0) return;

  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* const token_rows = shared;  // in two buffers, as the weight's rows
  unsigned char* const weight_rows = shared + 2 * Tile::stationary_bytes;
  const Lane lane;
  const RaggedSide tokens = all_tokens(problem.tokens);
  const SampleRows all(0, static_cast<int>(problem.tokens));
  const auto load_tokens = [&](int64_t block, int buffer) {
    const BlockColumns columns(structure, block);
    load_slice<Tile, Tile::stationary_rows>(token_rows + buffer * Tile::stationary_bytes, problem.input,
                                            structure.columns, tokens, all, first_token, columns.first,
                                            columns.count);
  };
  const auto expand = [&](int64_t block, int buffer) {
    expand_rows<Tile>(weight_rows + buffer * Tile::streamed_bytes, problem.weight,
                      static_cast<const T*>(problem.values), part, block, lane);
  };
  SumFragment sums[Tile::streamed_rows / 8] = {};
  const int64_t blocks = ChunkPart::column_blocks(structure);
  load_tokens(0, 0);
  expand(0, 0);
  for (int64_t block = 0; block < blocks; ++block) {
    const int buffer = static_cast<int>(block % 2);
    wait_for_copies();
    __syncthreads();  // the tiles are in, and every warp has left the other buffers
    if (block + 1 < blocks) {
      load_tokens(block + 1, buffer ^ 1);
      expand(block + 1, buffer ^ 1);
    }
    multiply_rows<Tile>(sums, token_rows + buffer * Tile::stationary_bytes,
                        weight_rows + buffer * Tile::streamed_bytes, lane);
  }

  const T* const bias = static_cast<const T*>(problem.bias);
  const T* const residual = static_cast<const T*>(problem.residual);
  T* const out = static_cast<T*>(problem.out);
#pragma unroll
  for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first_token + lane.warp * 16 + lane.group + 8 * half;
      const int column = 8 * j + 2 * lane.thread;
      const int present = token < problem.tokens ? min(part.rows - column, 2) : 0;
      const int64_t row = part.chunk_row + part.first + column, place = token * structure.rows + row;
      float values[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        values[e] = sums[j][2 * half + e];
        if (e >= present) continue;
        if (bias) values[e] += static_cast<float>(bias[row + e]);
        values[e] = activate(values[e], problem.activation);
        if (residual) values[e] += static_cast<float>(residual[place + e]);
      }
      store_pair(out, place, values, present);
    }
  }
}

}  // namespace vleff::cuda

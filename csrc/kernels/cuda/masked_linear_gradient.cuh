#pragma once
#include "fragments.cuh"
#include "sparse_tiles.cuh"

namespace vleff::cuda {

// The gradient's part of a tile of tokens: a row a token, a column for each stationary row of the weight.
template <class InputTile>
using GradientTile = Tile<typename InputTile::Element, InputTile::stationary_rows, InputTile::stationary_rows,
                          InputTile::streamed_rows>;

template <class Tile>
struct GradValuesMemory {
  static constexpr int loaded = 2 * (Tile::streamed_bytes + GradientTile<Tile>::streamed_bytes);
  static constexpr int sums = Tile::stationary_rows * Tile::width * 4;
  static constexpr int bytes = loaded > sums ? loaded : sums;
};

// A block of threads makes the dense gradient of a part of a chunk's rows by a block of columns, walking over
// all tokens in order, and stores what stands at the elements.
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    masked_linear_grad_values(const __grid_constant__ SparseGradientProblem problem) {
  using Gradient = GradientTile<Tile>;
  const MaskedStructure& structure = problem.weight.structure;
  const int64_t blocks = ChunkPart::column_blocks(structure), block = blockIdx.x % blocks;
  const ChunkPart part(structure, blockIdx.x / blocks, Tile::stationary_rows);
  if (part.rows == 0) return;
  const BlockColumns columns(structure, block);

  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* const input_rows = shared;
  unsigned char* const gradient_rows = shared + 2 * Tile::streamed_bytes;
  const Lane lane;
  const RaggedSide tokens = all_tokens(problem.tokens);
  const SampleRows all(0, static_cast<int>(problem.tokens));
  const auto load = [&](int first_token, int buffer) {
    load_slice<Tile, Tile::streamed_rows>(input_rows + buffer * Tile::streamed_bytes, problem.input,
                                          structure.columns, tokens, all, first_token, columns.first,
                                          columns.count);
    load_slice<Gradient, Tile::streamed_rows>(gradient_rows + buffer * Gradient::streamed_bytes,
                                              problem.grad_out, structure.rows, tokens, all, first_token,
                                              part.chunk_row + part.first, part.rows);
  };
  SumFragment sums[Tile::width / 8] = {};
  load(0, 0);
  for (int first_token = 0, buffer = 0; first_token < problem.tokens;
       first_token += Tile::streamed_rows, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tiles are in, and every warp has left the other buffers
    if (first_token + Tile::streamed_rows < problem.tokens) {
      load(first_token + Tile::streamed_rows, buffer ^ 1);
    }
    SumFragment weights[Tile::streamed_rows / 8];
    load_weights_transposed<Gradient>(weights, gradient_rows + buffer * Gradient::streamed_bytes, lane);
    multiply_weights<Tile>(sums, weights, input_rows + buffer * Tile::streamed_bytes, lane);
  }

  wait_for_copies();
  __syncthreads();  // every warp has left the tiles, whose memory the sums take
  float* const dense = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int j = 0; j < Tile::width / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = lane.warp * 16 + lane.group + e / 2 * 8, column = 8 * j + 2 * lane.thread + e % 2;
      dense[row * Tile::width + column] = sums[j][e];
    }
  }
  __syncthreads();  // the sums are in
  for_each_row<Tile::threads / warp_size>(
      problem.weight, part, block, lane, [&](int row, int begin, int end) {
        for (int e = begin + lane.number; e < end; e += warp_size) {
          const int column = structure.block_columns[e];
          problem.grad_values[e] = column < Tile::width ? dense[row * Tile::width + column] : 0.0f;
        }
      });
}

}  // namespace vleff::cuda

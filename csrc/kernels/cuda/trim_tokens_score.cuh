#pragma once
#include "activation.cuh"
#include "trim_tokens.cuh"

namespace vleff::cuda {

using ScoreTile = ProductTile<float, 64, 64, 32>;
constexpr int score_shared_bytes = product_shared_bytes<ScoreTile> + 2 * ScoreTile::rows * 4;

// logit = <score_weight, gelu(of_local local + from_pooled)> + score_bias + temperature * cosine(local,
// direction); a block takes a tile of tokens and walks over the rank. T is the type of the weights.
template <class T>
__global__ void __launch_bounds__(ScoreTile::threads, 2)
    trim_tokens_score(const __grid_constant__ TrimTokensProblem problem) {
  using Tile = ScoreTile;
  using Left = LeftTile<Tile, false>;
  using Right = RightTile<Tile, false>;
  const int tokens = static_cast<int>(problem.tokens), rank = static_cast<int>(problem.rank);
  const int first_token = static_cast<int>(blockIdx.x) * Tile::rows;
  extern __shared__ __align__(128) unsigned char shared[];
  float* const partial = reinterpret_cast<float*>(shared + product_shared_bytes<Tile>);  // [2, rows]
  const Lane lane;
  const WarpPlace<Tile> place(lane);
  const T* const weight = static_cast<const T*>(problem.hidden_weight);
  const T* const score_weight = static_cast<const T*>(problem.score_weight);

  int parts[Tile::row_fragments][2];  // of the lane's rows, -1 for none
#pragma unroll
  for (int i = 0; i < Tile::row_fragments; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first_token + place.row + 16 * i + lane.group + 8 * half;
      parts[i][half] = token < tokens ? sample_of(problem.offsets, problem.parts, token) : -1;
    }
  }
  struct Depth {
    int first;
    bool present;
  };
  float logits[Tile::row_fragments][2] = {};
  for (int first_feature = 0; first_feature < rank; first_feature += Tile::columns) {
    TileSums<Tile> sums = {};
    multiply_along<Tile, Left, Right>(
        Depth{0, true}, shared, lane,
        [&](const Depth& depth) {
          return Depth{depth.first + Tile::depth, depth.first + Tile::depth < rank};
        },
        [&](const Depth& depth, unsigned char* left, unsigned char* right) {
          load_operand<Left, Tile::threads>(left, [&](int row, int element) -> LinePiece<float> {
            const int column = depth.first + element;
            if (first_token + row >= tokens || column >= rank) return {problem.local, 0};
            return {problem.local + int64_t{first_token + row} * rank + column, rank - column};
          });
          fill_operand<Right, Tile::threads>(
              right, [&](int line, int element, float (&values)[Tile::chunk_elements]) {
                const int feature = first_feature + line;
                if (feature >= rank) return;
#pragma unroll
                for (int e = 0; e < Tile::chunk_elements; ++e) {
                  const int column = depth.first + element + e;
                  if (column < rank) {
                    values[e] = static_cast<float>(weight[int64_t{feature} * 2 * rank + column]);
                  }
                }
              });
        },
        [&](const TileSums<Tile>& product, const Depth&, unsigned char*) { add_sums<Tile>(sums, product); });
#pragma unroll
    for (int i = 0; i < Tile::row_fragments; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::column_fragments; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int feature = first_feature + place.column + 8 * j + 2 * lane.thread + e % 2;
          const int part = parts[i][e / 2];
          if (feature >= rank || part < 0) continue;
          const float hidden = gelu(sums[i][j][e] + problem.from_pooled[int64_t{part} * rank + feature]);
          logits[i][e / 2] += hidden * static_cast<float>(score_weight[feature]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Tile::row_fragments; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_of_row(logits[i][half]);
      const int row = place.row + 16 * i + lane.group + 8 * half;
      if (lane.thread == 0) partial[lane.warp % 2 * Tile::rows + row] = sum;
    }
  }
  __syncthreads();  // the sums of both halves of the columns are there
  const float bias = static_cast<float>(*static_cast<const T*>(problem.score_bias));
  for (int row = lane.warp; row < Tile::rows; row += trim_warps) {
    const int token = first_token + row;
    if (token >= tokens) return;
    const int part = sample_of(problem.offsets, problem.parts, token);
    float logit = partial[row] + partial[Tile::rows + row] + bias;
    if (problem.other_weight && part >= 0) {
      const float* const local = problem.local + int64_t{token} * rank;
      const float* const direction = problem.direction + int64_t{part} * rank;
      const float product = sum_terms(rank, [&](int i) { return local[i] * direction[i]; });
      const float length = length_of(sum_terms(rank, [&](int i) { return local[i] * local[i]; }));
      logit += static_cast<float>(*static_cast<const T*>(problem.temperature)) * product / length;
    }
    if (lane.number == 0) problem.logits[token] = part < 0 ? -INFINITY : logit;
  }
}

constexpr int list_threads = 1024;

// The tokens that stay, in order, by one block: every thread tells whether its token stays, and counts those
// before.
__global__ void __launch_bounds__(list_threads)
    trim_tokens_list(const __grid_constant__ TrimTokensProblem problem) {
  constexpr int warps = list_threads / warp_size;
  __shared__ int counts[2][warps];
  const int tokens = static_cast<int>(problem.tokens);
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  int kept = 0;
  for (int first = 0, buffer = 0; first < tokens; first += list_threads, buffer ^= 1) {
    const int token = first + static_cast<int>(threadIdx.x);
    bool stays = false;
    if (token < tokens) {
      const int part = sample_of(problem.offsets, problem.parts, token);
      stays = part >= 0 && (problem.logits[token] > problem.threshold || problem.offsets[part] == token ||
                            (problem.pinned && problem.pinned[token]));
    }
    const uint32_t of_warp = __ballot_sync(whole_warp, stays);
    if (lane == 0) counts[buffer][warp] = __popc(of_warp);
    __syncthreads();  // all counts are there; those before are in the other buffer
    int before = kept, total = 0;
    for (int other = 0; other < warps; ++other) {
      const int count = counts[buffer][other];
      before += other < warp ? count : 0;
      total += count;
    }
    if (stays) problem.survivors[before + __popc(of_warp & ((1u << lane) - 1))] = token;
    kept += total;
  }
  for (int place = kept + static_cast<int>(threadIdx.x); place < tokens; place += list_threads) {
    problem.survivors[place] = 0;
  }
  __syncthreads();  // the survivors are there
  for (int64_t part = threadIdx.x; part <= problem.parts; part += list_threads) {
    int low = 0, high = kept;  // the first survivor of this part or later ones
    while (low < high) {
      const int middle = (low + high) / 2;
      if (problem.survivors[middle] < problem.offsets[part])
        low = middle + 1;
      else
        high = middle;
    }
    problem.kept_offsets[part] = low;
  }
}

}  // namespace vleff::cuda

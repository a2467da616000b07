#pragma once
#include <cmath>

#include "fragments.cuh"
#include "gradient_units.cuh"

// Products of matrices of any width, for each sample of a ragged batch. Tiles are square: as many stationary
// as streamed rows, and as many columns.
namespace vleff::cuda {

constexpr float log2_of_e = 1.44269504088896341f;
constexpr float ln_of_2 = 0.69314718055994531f;

// A side without offsets is one sample.
__device__ __forceinline__ SampleRows rows_of_sample(const RaggedSide& side, int sample) {
  SampleRows rows = side.offsets ? SampleRows(side, sample) : SampleRows(0, static_cast<int>(side.total));
  rows.count = static_cast<int>(min(static_cast<int64_t>(rows.count), side.longest));
  return rows;
}

// Tiles of the longest sample.
__host__ __device__ inline int64_t square_tiles(const RaggedSide& side, int rows) {
  return (side.longest + rows - 1) / rows;
}

// An operand [total, width].
struct DenseRows {
  const void* data;
  const RaggedSide& side;
  SampleRows sample;
};

template <class Tile>
constexpr int product_shared_bytes = 2 * (Tile::stationary_bytes + Tile::streamed_bytes);

// sums[j] += this warp's 16 rows from first_left on times rows first_right + 8j to 8j + 7, over the whole
// width.
template <class Tile>
__device__ __forceinline__ void multiply_over_width(SumFragment (&sums)[Tile::streamed_rows / 8],
                                                    unsigned char* shared, const DenseRows& left,
                                                    int first_left, const DenseRows& right, int first_right,
                                                    int64_t width, const Lane& lane) {
  unsigned char* const right_rows = shared + 2 * Tile::stationary_bytes;
  const auto load = [&](int64_t column, int buffer) {
    load_slice<Tile, Tile::stationary_rows>(shared + buffer * Tile::stationary_bytes, left.data, width,
                                            left.side, left.sample, first_left, column, width - column);
    load_slice<Tile, Tile::streamed_rows>(right_rows + buffer * Tile::streamed_bytes, right.data, width,
                                          right.side, right.sample, first_right, column, width - column);
  };
  load(0, 0);
  int buffer = 0;
  for (int64_t column = 0; column < width; column += Tile::width, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // the slices are in, and every warp has left the other buffers
    if (column + Tile::width < width) load(column + Tile::width, buffer ^ 1);
    multiply_rows<Tile>(sums, shared + buffer * Tile::stationary_bytes,
                        right_rows + buffer * Tile::streamed_bytes, lane);
  }
}

// result(i) = scale * factor of weight row i * sum over r of weight(i, r) * row(r) or, transposed,
// result(i) = scale * sum over r of factor of weight row r * weight(r, i) * row(r)
struct WeightedSums {
  int64_t batch, width;
  RaggedSide results, summed;  // rows of the result; rows that are summed
  const void* weights;         // row: a number of the whole batch; column: a number within the sample
  int64_t weights_stride;
  const float* factors;  // of weight rows
  const void* rows;      // [summed.total, width]
  float scale;
  float* partial;  // [results.total, width]: sums of earlier launches, unless this is the first and last one
  bool first, last;  // of the launches that add to one result
  void* result;      // [results.total, width]; rows of no sample stay as they are
};

// A block makes a tile of one sample's results and walks over the summed rows in order.
template <class Tile, bool transposed>
__global__ void __launch_bounds__(Tile::threads, 1)
    weighted_sums(const __grid_constant__ WeightedSums problem) {
  using T = typename Tile::Element;
  constexpr int size = Tile::width;
  static_assert(Tile::stationary_rows == size && Tile::streamed_rows == size);
  const int64_t slices = (problem.width + size - 1) / size, tiles = square_tiles(problem.results, size);
  const int64_t column = blockIdx.x % slices * size;
  const int first_result = static_cast<int>(blockIdx.x / slices % tiles) * size;
  const int sample = static_cast<int>(blockIdx.x / slices / tiles);
  const SampleRows results = rows_of_sample(problem.results, sample);
  const SampleRows summed = rows_of_sample(problem.summed, sample);
  if (first_result >= results.count) return;

  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* const weight_tiles = shared;
  unsigned char* const row_tiles = shared + 2 * Tile::stationary_bytes;
  const Lane lane;
  const auto load = [&](int first, int buffer) {
    unsigned char* const weights = weight_tiles + buffer * Tile::stationary_bytes;
    if (transposed) {
      load_slice<Tile, size>(weights, problem.weights, problem.weights_stride, problem.summed, summed, first,
                             first_result, results.count - first_result);
    } else {
      load_slice<Tile, size>(weights, problem.weights, problem.weights_stride, problem.results, results,
                             first_result, first, summed.count - first);
    }
    load_slice<Tile, size>(row_tiles + buffer * Tile::streamed_bytes, problem.rows, problem.width,
                           problem.summed, summed, first, column, problem.width - column);
  };
  const auto place_of = [&](int half, int j) {
    const int row = min(first_result + lane.warp * 16 + lane.group + 8 * half, results.count - 1);
    return (results.first + row) * problem.width + column + 8 * j + 2 * lane.thread;
  };
  const auto present_in = [&](int half, int j) {
    if (first_result + lane.warp * 16 + lane.group + 8 * half >= results.count) return 0;
    return static_cast<int>(min(problem.width - column - 8 * j - 2 * lane.thread, static_cast<int64_t>(2)));
  };
  const auto for_each_pair = [&](const auto& act) {
#pragma unroll
    for (int j = 0; j < size / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) act(j, half, place_of(half, j), present_in(half, j));
    }
  };

  SumFragment sums[size / 8] = {};
  if (!problem.first) {
    for_each_pair([&](int j, int half, int64_t place, int present) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (e < present) sums[j][2 * half + e] = problem.partial[place + e];
      }
    });
  }
  const float* const factors = problem.factors + (transposed ? summed : results).first;
  float unit = 1.0f;
  if (transposed) {
    unit = unit_of<Tile::threads>(factors, summed.count, 1, reinterpret_cast<float*>(shared));
    __syncthreads();  // every warp has read what the tiles overwrite
  }
  load(0, 0);
  for (int first = 0, buffer = 0; first < summed.count; first += size, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();  // the tiles are in, and every warp has left the other buffers
    if (first + size < summed.count) load(first + size, buffer ^ 1);
    SumFragment weights[size / 8];
    if (transposed) {
      load_weights_transposed<Tile>(weights, weight_tiles + buffer * Tile::stationary_bytes, lane);
#pragma unroll
      for (int j = 0; j < size / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = first + 8 * j + 2 * lane.thread + e % 2;
          weights[j][e] = row < summed.count ? weights[j][e] * (factors[row] / unit) : 0.0f;
        }
      }
    } else {
      load_weights<Tile>(weights, weight_tiles + buffer * Tile::stationary_bytes, lane);
    }
    multiply_weights<Tile>(sums, weights, row_tiles + buffer * Tile::streamed_bytes, lane);
  }
  wait_for_copies();  // of a sample without rows

  for_each_pair([&](int j, int half, int64_t place, int present) {
    float values[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      values[e] = sums[j][2 * half + e];
      if (!problem.last && e < present) problem.partial[place + e] = values[e];
    }
    if (!problem.last) return;
    const int row = min(first_result + lane.warp * 16 + lane.group + 8 * half, results.count - 1);
    const float factor = (transposed ? unit : factors[row]) * problem.scale;
#pragma unroll
    for (int e = 0; e < 2; ++e) values[e] *= factor;
    store_pair(static_cast<T*>(problem.result), place, values, present);
  });
}

}  // namespace vleff::cuda

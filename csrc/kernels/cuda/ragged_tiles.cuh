#pragma once
#include "device.cuh"
#include "token_gather_attention_problem.h"

// Tiles of rows of a ragged batch in shared memory: loading them, gathered through an index where there is
// one, multiplying them, and storing the result.
namespace vleff::cuda {

template <class T, int padded_head_dim, int stationary, int streamed>
struct Tile {
  using Element = T;
  static constexpr int width = padded_head_dim;          // columns past head_dim are 0
  static constexpr int chunk_elements = 16 / sizeof(T);  // elements of one 16-byte access
  static constexpr int chunks = width / chunk_elements;  // of a row
  static constexpr int stationary_rows = stationary;     // kept by a block, 16 a warp
  static constexpr int streamed_rows = streamed;         // of one of two buffers
  static constexpr int threads = stationary / 16 * warp_size;
  static constexpr int stationary_bytes = stationary * width * sizeof(T);
  static constexpr int streamed_bytes = streamed * width * sizeof(T);
};

struct Lane {
  int warp = threadIdx.x / warp_size, number = threadIdx.x % warp_size;
  int group = number / 4, thread = number % 4;  // as fragments count them
};

// Rows stand one after the other in 16-byte chunks. The chunk number is mixed with the row number, so that
// one chunk of eight neighbouring rows spans all banks.
template <class Tile>
__device__ __forceinline__ unsigned char* chunk_address(unsigned char* rows, int row, int chunk) {
  const int mixed = Tile::chunks >= 8 ? chunk ^ (row % 8) : chunk ^ (row / 2 % 4);
  return rows + (row * Tile::chunks + mixed) * 16;
}

// The rows of one sample on one side.
struct SampleRows {
  int first;  // in the batch
  int count;

  __device__ SampleRows(int first_row, int rows) : first(first_row), count(rows) {}
  __device__ SampleRows(const RaggedSide& side, int sample) {
    const int total = static_cast<int>(side.total);
    first = min(max(side.offsets[sample], 0), total);
    count = min(max(side.offsets[sample + 1], first), total) - first;
  }
};

// The sample that row `row` of a ragged batch belongs to, -1 for none. offsets: [batch + 1]
__device__ __forceinline__ int sample_of(const int32_t* offsets, int64_t batch, int row) {
  int64_t low = 1, high = batch + 1;  // the first offset above the row
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (offsets[middle] > row)
      high = middle;
    else
      low = middle + 1;
  }
  return low > batch ? -1 : static_cast<int>(low - 1);
}

// Where row `row` stands among `stored` > 0 rows; wrong numbers are clamped.
__device__ __forceinline__ int64_t stored_row(const RowIndex& index, int64_t stored, int row) {
  if (!index.numbers) return row;
  const int64_t number = index.is_int64 ? static_cast<const int64_t*>(index.numbers)[row]
                                        : static_cast<const int32_t*>(index.numbers)[row];
  return number < 0 ? 0 : number < stored ? number : stored - 1;
}

// One head of one operand; rows are read in whole chunks where their addresses allow.
template <class T>
struct HeadOperand {
  const T* data;
  int64_t row_stride;
  bool aligned;

  __device__ HeadOperand(const HeadRows& rows, int head)
      : data(static_cast<const T*>(rows.data) + head * rows.head_stride), row_stride(rows.row_stride) {
    aligned = (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(row_stride) * sizeof(T)) % 16 == 0;
  }
};

// Starts loading rows [first, first + rows) of the sample; rows past its end become 0.
template <class Tile, int rows>
__device__ __forceinline__ void load_rows(unsigned char* target,
                                          const HeadOperand<typename Tile::Element>& operand,
                                          const RaggedSide& side, const SampleRows& sample, int first,
                                          int head_dim) {
  using T = typename Tile::Element;
  constexpr int across = Tile::chunks < Tile::threads ? Tile::chunks : Tile::threads;  // threads along a row
  constexpr int rows_at_once = Tile::threads / across;
  static_assert(Tile::threads % across == 0 && Tile::chunks % across == 0 && rows % rows_at_once == 0);
  const int first_row = threadIdx.x / across, present = side.stored > 0 ? sample.count - first : 0;
#pragma unroll
  for (int part = 0; part < Tile::chunks / across; ++part) {
    const int chunk = part * across + threadIdx.x % across, column = chunk * Tile::chunk_elements;
    const int elements = max(0, min(head_dim - column, Tile::chunk_elements));
    const auto source_of = [&](int row) {
      const int64_t stored = stored_row(side.index, side.stored, sample.first + first + row);
      return operand.data + stored * operand.row_stride + column;
    };
    if (!operand.aligned) {
#pragma unroll 1
      for (int row = first_row; row < rows; row += rows_at_once) {
        const int count = row < present ? elements : 0;
        const T* const source = count > 0 ? source_of(row) : operand.data;
        alignas(16) T values[Tile::chunk_elements];
#pragma unroll
        for (int e = 0; e < Tile::chunk_elements; ++e)
          values[e] = e < count ? source[e] : static_cast<T>(0.0f);
        *reinterpret_cast<uint4*>(chunk_address<Tile>(target, row, chunk)) =
            *reinterpret_cast<const uint4*>(values);
      }
    } else if (side.index.numbers) {
#pragma unroll
      for (int step = 0; step < rows; step += rows_at_once) {
        const int row = first_row + step;
        const bool there = row < present && elements > 0;
        copy_async<16>(chunk_address<Tile>(target, row, chunk), there ? source_of(row) : operand.data,
                       there ? elements * static_cast<int>(sizeof(T)) : 0);
      }
    } else {  // neighbours in memory: one address, counted up
      const T* source = operand.data + (sample.first + first + first_row) * operand.row_stride + column;
#pragma unroll
      for (int step = 0; step < rows; step += rows_at_once, source += rows_at_once * operand.row_stride) {
        const int row = first_row + step;
        const bool there = row < present && elements > 0;
        copy_async<16>(chunk_address<Tile>(target, row, chunk), there ? source : operand.data,
                       there ? elements * static_cast<int>(sizeof(T)) : 0);
      }
    }
  }
}

// Starts loading numbers [first, first + numbers) of `count`, which stand `stride` apart; the others become
// 0.
template <class Tile>
__device__ __forceinline__ void load_numbers(float* target, const float* source, int first, int count,
                                             int stride) {
  for (int i = threadIdx.x; i < Tile::streamed_rows; i += Tile::threads) {
    const bool present = first + i < count;
    copy_async<4>(target + i, source + (present ? static_cast<int64_t>(first + i) * stride : 0),
                  present ? 4 : 0);
  }
}

// products[j] += this warp's 16 stationary rows times streamed rows 8j to 8j + 7, over the head's width. Of
// the streamed rows, those from `used` on may be left out.
template <class Tile>
__device__ __forceinline__ void multiply_rows(SumFragment (&products)[Tile::streamed_rows / 8],
                                              unsigned char* stationary, unsigned char* streamed,
                                              const Lane& lane, int used = Tile::streamed_rows) {
  using T = typename Tile::Element;
#pragma unroll 4  // one period of the mixed chunk numbers
  for (int depth = 0; depth < Tile::chunks; depth += 2) {
    LeftFragment left;
    load_matrices(
        left, chunk_address<Tile>(stationary, lane.warp * 16 + lane.number % 16, depth + lane.number / 16));
#pragma unroll
    for (int row = 0; row < Tile::streamed_rows; row += 16) {
      if (sizeof(T) == 2 && row >= used) break;
      uint32_t words[4];
      load_matrices(words, chunk_address<Tile>(streamed, row + lane.number % 8 + lane.number / 16 * 8,
                                               depth + lane.number / 8 % 2));
      const RightFragment first = {words[0], words[1]}, second = {words[2], words[3]};
      add_product<T>(products[row / 8], left, first);
      add_product<T>(products[row / 8 + 1], left, second);
    }
  }
}

// out[j] += weights [16 rows, streamed rows] times columns 8j to 8j + 7 of the streamed rows, from
// `first_column` on, a multiple of `columns`. Of the streamed rows, those from `used` on may be left out.
template <class Tile, int columns = Tile::width>
__device__ __forceinline__ void multiply_weights(SumFragment (&out)[columns / 8],
                                                 const SumFragment (&weights)[Tile::streamed_rows / 8],
                                                 unsigned char* streamed, const Lane& lane,
                                                 int first_column = 0, int used = Tile::streamed_rows) {
  using T = typename Tile::Element;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int row = 0; row < Tile::streamed_rows; row += 16) {
      if (sizeof(T) == 2 && row >= used) break;
      const SumFragment &low = weights[row / 8], &high = weights[row / 8 + 1];
      const LeftFragment left = {packed<T>(low[0], low[1]), packed<T>(low[2], low[3]),
                                 packed<T>(high[0], high[1]), packed<T>(high[2], high[3])};
#pragma unroll
      for (int chunk = 0; chunk < columns / Tile::chunk_elements; chunk += 2) {
        uint32_t words[4];
        load_matrices_transposed(
            words, chunk_address<Tile>(streamed, row + lane.number % 16,
                                       first_column / Tile::chunk_elements + chunk + lane.number / 16));
        const RightFragment first = {words[0], words[1]}, second = {words[2], words[3]};
        multiply<T>(out[chunk], left, first);
        multiply<T>(out[chunk + 1], left, second);
      }
    }
  } else {
    // A lane holds the weights of rows 2 * thread and 2 * thread + 1, where a left operand has thread and
    // thread + 4: the rows of both operands are taken in that order.
    const uint32_t* const words = reinterpret_cast<const uint32_t*>(streamed);
    const int row = 2 * lane.thread;
    // chunk_address in words; rows start at multiples of the width, so that a column is a matter of its bits
    const int first = row * Tile::width + (lane.group ^ row % 8 * 4);
    const int second = (row + 1) * Tile::width + (lane.group ^ (row + 1) % 8 * 4);
#pragma unroll
    for (int column = 0; column < columns; column += 8) {
      SumFragment sum = {};
#pragma unroll
      for (int block = 0; block < Tile::streamed_rows; block += 8) {
        const SumFragment& weight = weights[block / 8];
        const LeftFragment left = {__float_as_uint(weight[0]), __float_as_uint(weight[2]),
                                   __float_as_uint(weight[1]), __float_as_uint(weight[3])};
        const int offset = block * Tile::width;
        const RightFragment right = {words[((first + offset) ^ column) + first_column],
                                     words[((second + offset) ^ column) + first_column]};
        multiply<T>(sum, left, right);
      }
      add(out[column / 8], sum);
    }
  }
}

// act(logit, half, column) for each number of the lane: of its first or second row, in a column of the tile.
template <class Tile, class Act>
__device__ __forceinline__ void for_each_logit(SumFragment (&logits)[Tile::streamed_rows / 8],
                                               const Lane& lane, const Act& act) {
#pragma unroll
  for (int j = 0; j < Tile::streamed_rows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) act(logits[j][e], e / 2, 8 * j + 2 * lane.thread + e % 2);
  }
}

// Sum over the four lanes that hold a row, in a fixed order.
__device__ __forceinline__ float sum_of_row(float value) {
  value += __shfl_xor_sync(whole_warp, value, 1);
  return value + __shfl_xor_sync(whole_warp, value, 2);
}
__device__ __forceinline__ float maximum_of_row(float value) {
  value = fmaxf(value, __shfl_xor_sync(whole_warp, value, 1));
  return fmaxf(value, __shfl_xor_sync(whole_warp, value, 2));
}

template <class T>
__device__ __forceinline__ void store_chunk(T* target, uint4 chunk, int elements, bool aligned) {
  constexpr int chunk_elements = 16 / sizeof(T);
  if (aligned && elements >= chunk_elements) {
    *reinterpret_cast<uint4*>(target) = chunk;
    return;
  }
  const T* values = reinterpret_cast<const T*>(&chunk);
#pragma unroll
  for (int e = 0; e < chunk_elements; ++e) {
    if (e < elements) target[e] = values[e];
  }
}

// One head of a result [rows, heads, head_dim], 16-byte aligned.
template <class T>
struct HeadResult {
  T* data;
  int64_t heads;
  int head, head_dim;

  __device__ T* at(int64_t row, int column) const { return data + (row * heads + head) * head_dim + column; }
  __device__ bool aligned() const { return head_dim * static_cast<int>(sizeof(T)) % 16 == 0; }
};

// Rows [first, first + rows) become 0.
template <class Tile>
__device__ void zero_head_rows(const HeadResult<typename Tile::Element>& result, int first, int rows) {
  const int row_chunks = (result.head_dim + Tile::chunk_elements - 1) / Tile::chunk_elements;
  for (int i = threadIdx.x; i < rows * row_chunks; i += Tile::threads) {
    const int column = i % row_chunks * Tile::chunk_elements;
    store_chunk(result.at(first + i / row_chunks, column), uint4{}, result.head_dim - column,
                result.aligned());
  }
}

// Multiplies the warp's 16 rows by `factor`, stages them in shared memory that only this warp uses, the
// stationary rows of its own, and stores those below `rows`.
template <class Tile>
__device__ __forceinline__ void store_head_rows(const HeadResult<typename Tile::Element>& result,
                                                SumFragment (&out)[Tile::width / 8], const float (&factor)[2],
                                                unsigned char* staged, int first_row, int rows,
                                                const Lane& lane) {
  using T = typename Tile::Element;
  __syncwarp();
#pragma unroll
  for (int column = 0; column < Tile::width; column += 8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int element = column + 2 * lane.thread;
      unsigned char* chunk =
          chunk_address<Tile>(staged, lane.warp * 16 + lane.group + 8 * half, element / Tile::chunk_elements);
      reinterpret_cast<typename Pair<T>::Type*>(chunk)[element % Tile::chunk_elements / 2] =
          Pair<T>::of(out[column / 8][2 * half] * factor[half], out[column / 8][2 * half + 1] * factor[half]);
    }
  }
  __syncwarp();
  const bool aligned = result.aligned();
  for (int i = lane.number; i < 16 * Tile::chunks; i += warp_size) {
    const int row = lane.warp * 16 + i / Tile::chunks, chunk = i % Tile::chunks,
              column = chunk * Tile::chunk_elements;
    if (row >= rows || column >= result.head_dim) continue;
    store_chunk(result.at(first_row + row, column),
                *reinterpret_cast<const uint4*>(chunk_address<Tile>(staged, row, chunk)),
                result.head_dim - column, aligned);
  }
}

}  // namespace vleff::cuda

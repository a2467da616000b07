#pragma once
#include "product_tiles.cuh"
#include "residual_layer_norm_problem.h"
#include "warp_sums.cuh"

namespace vleff::cuda {

constexpr int held_width = 2048;  // of rows that a warp holds in its registers

// A warp takes a row, its lanes the row's chunks of 16 bytes in turn. Where the row is `held`, memory is read
// once.
template <class T, bool held>
__global__ void __launch_bounds__(warps_of_rows* warp_size)
    residual_layer_norm(const __grid_constant__ LayerNormProblem problem) {
  constexpr int elements = 16 / sizeof(T), held_chunks = held ? held_width / elements / warp_size : 1;
  const int64_t row = int64_t{blockIdx.x} * warps_of_rows + threadIdx.x / warp_size;
  if (row >= problem.rows) return;
  const int lane = threadIdx.x % warp_size, width = static_cast<int>(problem.width);
  const int chunks = tiles_in(width, elements);
  const T* const input = static_cast<const T*>(problem.input) + row * width;
  const T* const residual =
      problem.residual ? static_cast<const T*>(problem.residual) + row * width : nullptr;
  const auto load = [&](float (&values)[elements], int chunk) {
    const int count = width - chunk * elements;
#pragma unroll
    for (float& value : values) value = 0.0f;
    add_elements(values, input + chunk * elements, count);
    if (residual) add_elements(values, residual + chunk * elements, count);
  };

  float values[held_chunks][elements];
  // act(values of a chunk, its number)
  const auto for_each_chunk = [&](const auto& act) {
    if constexpr (held) {
#pragma unroll
      for (int i = 0; i < held_chunks; ++i) {
        if (lane + i * warp_size < chunks) act(values[i], lane + i * warp_size);
      }
    } else {
      for (int chunk = lane; chunk < chunks; chunk += warp_size) {
        load(values[0], chunk);
        act(values[0], chunk);
      }
    }
  };
  if constexpr (held) for_each_chunk([&](float (&of_chunk)[elements], int chunk) { load(of_chunk, chunk); });

  float total = 0.0f;
  for_each_chunk([&](const float (&of_chunk)[elements], int) {
#pragma unroll
    for (const float value : of_chunk) total += value;
  });
  const float mean = sum_of_warp(total) / static_cast<float>(width);
  float squares = 0.0f;
  for_each_chunk([&](const float (&of_chunk)[elements], int chunk) {
#pragma unroll
    for (int e = 0; e < elements; ++e) {
      const float distance = chunk * elements + e < width ? of_chunk[e] - mean : 0.0f;
      squares += distance * distance;
    }
  });
  const float factor = 1.0f / sqrtf(sum_of_warp(squares) / static_cast<float>(width) + problem.eps);

  for_each_chunk([&](const float (&of_chunk)[elements], int chunk) {
    const int first = chunk * elements, count = width - first;
    if (problem.sum) store_elements(static_cast<T*>(problem.sum) + row * width + first, of_chunk, count);
    float weights[elements] = {}, normalized[elements] = {};
    add_elements(weights, static_cast<const T*>(problem.weight) + first, count);
    add_elements(normalized, static_cast<const T*>(problem.bias) + first, count);
#pragma unroll
    for (int e = 0; e < elements; ++e) normalized[e] += (of_chunk[e] - mean) * factor * weights[e];
    store_elements(static_cast<T*>(problem.normalized) + row * width + first, normalized, count);
  });
}

}  // namespace vleff::cuda

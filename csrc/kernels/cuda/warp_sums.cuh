#pragma once
#include "device.cuh"

namespace vleff::cuda {

constexpr int warps_of_rows = 4;  // of blocks whose warps take a row each

// In a fixed order; all lanes get the sum.
__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(whole_warp, value, distance);
  }
  return value;
}

}  // namespace vleff::cuda

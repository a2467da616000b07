#pragma once
#include "device.cuh"

// float16 holds numbers from 2 ** -24 to 65504. Gradients are brought into that range by powers of two before
// they are rounded to the operands' type, and back in float32; for other types that changes nothing.
namespace vleff::cuda {

constexpr float weight_unit = 4096.0f;  // what weights of at most 1 are multiplied by

// The power of two of a number's own size, at least 2 ** -126 and at most 2 ** 126; 1 for 0.
__device__ __forceinline__ float power_of_two_of(float number) {
  const uint32_t exponent = __float_as_uint(number) & 0x7F800000u;
  if (exponent == 0) return 1.0f;
  return __uint_as_float(min(exponent, 0x7E800000u));
}

__device__ __forceinline__ float maximum_of_warp(float value) {
#pragma unroll
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(whole_warp, value, distance));
  }
  return value;
}

// power_of_two_of the largest |numbers[i * stride]|, i < count, for all threads of a block. `of_warps` is
// shared memory with a float for each warp, free again after the block's next barrier.
template <int threads>
__device__ float unit_of(const float* numbers, int count, int64_t stride, float* of_warps) {
  float largest = 0.0f;
  for (int i = threadIdx.x; i < count; i += threads) largest = fmaxf(largest, fabsf(numbers[i * stride]));
  largest = maximum_of_warp(largest);
  if (threadIdx.x % warp_size == 0) of_warps[threadIdx.x / warp_size] = largest;
  __syncthreads();
  for (int warp = 0; warp < threads / warp_size; ++warp) largest = fmaxf(largest, of_warps[warp]);
  return power_of_two_of(largest);
}

}  // namespace vleff::cuda

#pragma once
#include "warp_sums.cuh"

namespace vleff::cuda {

// The sum of term(i) for i in [0, count), in a fixed order, in every lane.
template <class Term>
__device__ __forceinline__ float sum_terms(int count, const Term& term) {
  float sum = 0.0f;
  for (int i = threadIdx.x % warp_size; i < count; i += warp_size) sum += term(i);
  return sum_of_warp(sum);
}

}  // namespace vleff::cuda

#pragma once
#include "../data_type.h"
#include "device.cuh"

// Starting kernels, for the sources that choose an instantiation.
namespace vleff::cuda {

constexpr int most_shared_bytes = 99 * 1024;  // of a block, on compute capability 8.6 and 8.9

constexpr DataType type_of(float) {
  return DataType::float32;
}
constexpr DataType type_of(__nv_bfloat16) {
  return DataType::bfloat16;
}
constexpr DataType type_of(__half) {
  return DataType::float16;
}

// Starts a kernel of one argument; no blocks are no mistake.
template <class Problem>
cudaError_t launch(void (*kernel)(Problem), const Problem& problem, int64_t blocks, int threads,
                   int shared_bytes, cudaStream_t stream) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 0) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(problem);
  return cudaGetLastError();
}

}  // namespace vleff::cuda

#pragma once
#include <cstdint>

#include "../data_type.h"

namespace vleff::cuda {

// As ResidualLayerNormProblem of the CPU. Pointers are on the device, all else on the host.
struct LayerNormProblem {
  DataType type;
  int64_t rows, width;   // each at least 1; width at most 2^31 - 1
  const void* input;     // [rows, width]
  const void* residual;  // [rows, width], or null
  const void* weight;    // [width]
  const void* bias;      // [width]
  float eps;
  void* normalized;  // [rows, width]
  void* sum;         // [rows, width], or null
};

}  // namespace vleff::cuda

// Starts the kernel on a CUDA stream and returns at once: 0, or a CUDA error number.
extern "C" int vleff_residual_layer_norm_cuda(const vleff::cuda::LayerNormProblem* problem, void* stream);

#pragma once
#include <torch/csrc/stable/accelerator.h>

#include "../kernels/cuda/token_gather_attention_problem.h"
#include "checks.h"

namespace vleff {

inline Device cuda_device_of(const Tensor& tensor) {
  return Device(DeviceType::CUDA, tensor.get_device_index());
}

// The stream on which torch orders its work on the tensor's device.
inline void* current_stream(const Tensor& tensor) {
  return torch::stable::accelerator::getCurrentStream(tensor.get_device_index()).nativeHandle();
}

inline void check_started(const char* op, int error) {
  if (error) throw std::runtime_error(text(op, ": CUDA kernel not started: ", vleff_cuda_error_text(error)));
}

}  // namespace vleff

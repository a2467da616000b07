#pragma once
#include <torch/csrc/stable/ops.h>

#include "../kernels/parallel.h"

namespace vleff {

// Threads for kernels from torch's pool: as many as torch.set_num_threads allows.
inline Parallel torch_parallel() {
  return {torch::stable::get_num_threads(),
          [](const Parallel&, int64_t workers, void (*body)(void*, int64_t), void* context) {
            torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
            });
          }};
}

// Memory that kernels use for themselves, 64-byte aligned.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : memory_(torch::stable::empty({bytes + alignment}, torch::headeronly::ScalarType::Byte)) {}

  void* data() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data_ptr());
    return reinterpret_cast<void*>((address + alignment - 1) / alignment * alignment);
  }

 private:
  static constexpr int64_t alignment = 64;
  torch::stable::Tensor memory_;
};

}  // namespace vleff

#pragma once
#include <sys/mman.h>
#include <torch/csrc/stable/tensor.h>
#include <unistd.h>

namespace vleff {

// The C library takes memory beyond 32 MiB fresh from the kernel each time, whose pages cost a fifth of a
// matrix product's time.
constexpr int64_t most_reused_bytes = 30 << 20;

// Asks for huge pages under a large tensor. A hint: nothing depends on it.
inline void prefer_huge_pages(const torch::stable::Tensor& tensor) {
#ifdef MADV_HUGEPAGE
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
  if (bytes <= most_reused_bytes) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace vleff

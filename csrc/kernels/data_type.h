#pragma once
#include <cstdint>

namespace vleff {

// The element types that kernels take. Accumulation is always in float32.
enum class DataType : int32_t { float32, bfloat16, float16 };

inline int64_t size_of(DataType type) {
  return type == DataType::float32 ? 4 : 2;
}

}  // namespace vleff

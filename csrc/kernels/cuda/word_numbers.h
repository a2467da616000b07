#pragma once

namespace vleff::cuda {

// Words on the device, one a row, int32 or int64. Negative ones stand for none.
struct WordNumbers {
  const void* numbers;
  bool is_int64;
};

}  // namespace vleff::cuda

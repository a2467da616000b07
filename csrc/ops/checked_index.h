#pragma once
#include "checks.h"

namespace vleff {

// Row numbers on the CPU as contiguous int32, after a check that they are in [0, rows).
inline OptionalTensor checked_index(const char* op, const char* argument, const OptionalTensor& index,
                                    int64_t rows) {
  if (!index) return std::nullopt;
  const Tensor numbers = as_contiguous(*index);
  if (numbers.scalar_type() == ScalarType::Int) {
    check_index(op, argument, numbers.const_data_ptr<int32_t>(), numbers.numel(), rows);
    return numbers;
  }
  check_index(op, argument, numbers.const_data_ptr<int64_t>(), numbers.numel(), rows);
  return torch::stable::to(numbers, ScalarType::Int);
}

}  // namespace vleff

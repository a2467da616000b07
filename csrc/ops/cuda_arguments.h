#pragma once
#include "../kernels/cuda/row_index.h"
#include "cuda_stream.h"

namespace vleff {

inline cuda::RowIndex row_index(const OptionalTensor& index) {
  if (!index) return {nullptr, false};
  return {index->const_data_ptr(), index->scalar_type() == ScalarType::Long};
}

inline const void* data_or_null(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

}  // namespace vleff

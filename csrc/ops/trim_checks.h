#pragma once
#include <optional>

#include "checks.h"

namespace vleff {

// A parameter of a trimmer: of the type `type`, on the device, contiguous.
inline Tensor checked_parameter(const char* op, const char* argument, const Tensor& tensor, ScalarType type,
                                std::initializer_list<int64_t> shape, const char* shape_text,
                                const Device& device = DeviceType::CPU) {
  check_tensor(op, argument, tensor, {type}, shape, shape_text, device);
  return as_contiguous(tensor);
}

// The only element of a float32, bfloat16 or float16 tensor.
inline float only_element(const Tensor& tensor) {
  return *torch::stable::to(tensor, ScalarType::Float).const_data_ptr<float>();
}

inline ScalarType checked_type(const char* op, const char* argument, const Tensor& tensor,
                               const char* shape_text) {
  const ScalarType type = tensor.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::BFloat16 && type != ScalarType::Half) {
    reject(op, argument, std::string("float32, bfloat16 or float16 ") + shape_text, describe(tensor));
  }
  return type;
}

}  // namespace vleff

#pragma once
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "../kernels/data_type.h"
#include "value_checks.h"

namespace vleff {

using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::DeviceType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return text("dtype number ", static_cast<int>(type));
  }
}

inline std::string name_of(const Device& device) {
  if (device.is_cpu()) return "the CPU";
  return device.is_cuda() ? text("CUDA device ", device.index()) : "another device";
}

// For example "float32 [3, 12, 64]", and where it is not on the CPU "float32 [3, 12, 64] on CUDA device 0"
inline std::string describe(const Tensor& tensor) {
  std::string sizes;
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes += text(d ? ", " : "", tensor.size(d));
  return name_of(tensor.scalar_type()) + " [" + sizes + "]" +
         (tensor.is_cpu() ? "" : " on " + name_of(tensor.device()));
}

inline bool is_on(const Tensor& tensor, const Device& device) {
  return device.is_cpu() ? tensor.is_cpu() : tensor.device() == device;
}

constexpr int64_t any_size = -1;

// shape_text names the shape for people, for example "[batch, heads]".
inline void check_tensor(const char* op, const char* argument, const Tensor& tensor,
                         std::initializer_list<ScalarType> types, std::initializer_list<int64_t> shape,
                         const char* shape_text, const Device& device = DeviceType::CPU) {
  bool fits = is_on(tensor, device) && tensor.dim() == static_cast<int64_t>(shape.size());
  bool type_fits = false;
  for (ScalarType type : types) type_fits |= tensor.scalar_type() == type;
  int64_t d = 0;
  for (int64_t size : shape) {
    fits = fits && (size == any_size || tensor.size(d) == size);
    ++d;
  }
  if (fits && type_fits) return;
  std::string expected;
  for (ScalarType type : types) expected += (expected.empty() ? "" : " or ") + name_of(type);
  expected += text(" ", shape_text);
  std::string sizes;
  bool any_known = false;
  for (int64_t size : shape) {
    sizes += (sizes.empty() ? "" : ", ") + (size == any_size ? std::string("*") : text(size));
    any_known |= size != any_size;
  }
  if (any_known) expected += " = [" + sizes + "]";
  reject(op, argument, expected + " on " + name_of(device), describe(tensor));
}

inline void check_contiguous(const char* op, const char* argument, const Tensor& tensor) {
  if (!tensor.is_contiguous()) reject(op, argument, "a contiguous tensor", describe(tensor) + " with gaps");
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
inline OptionalTensor as_contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(as_contiguous(*tensor)) : std::nullopt;
}

// Of a tensor that check_tensor has found to be float32, bfloat16 or float16.
inline DataType data_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return DataType::bfloat16;
    case ScalarType::Half:
      return DataType::float16;
    default:
      return DataType::float32;
  }
}

}  // namespace vleff

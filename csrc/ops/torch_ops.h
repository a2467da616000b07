#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

namespace vleff {

// Calls any op of torch by name. Throws where it does not exist or refuses its arguments.
template <class Result, class... Arguments>
Result call_op(const char* name, const char* overload, const Arguments&... arguments) {
  constexpr size_t slots = sizeof...(Arguments) > 0 ? sizeof...(Arguments) : 1;
  std::array<StableIValue, slots> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Result>(stack[0]);
}

// The stable ABI has no addition of tensors.
inline torch::stable::Tensor add(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  return torch::stable::subtract(a, b, -1.0);
}

}  // namespace vleff

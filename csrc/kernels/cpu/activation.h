#pragma once
#include <cstdint>

namespace vleff {

enum class Activation : int32_t { none, relu, gelu, gelu_tanh, silu, quick_gelu };

}  // namespace vleff

#pragma once
#include "../data_type.h"
#include "matmul.h"

namespace vleff::VLEFF_ISA {

// bfloat16 products where the processor has them; everything else is computed in float32.
#if defined(__AVX512BF16__)
using ProductOfBFloat16 = BFloat16Product;
#else
using ProductOfBFloat16 = Float32Product;
#endif

// Calls call(Pass<element type, its product>{}).
template <template <class, class> class Pass, class Call>
auto with_type(DataType type, const Call& call) {
  switch (type) {
    case DataType::bfloat16:
      return call(Pass<BFloat16, ProductOfBFloat16>{});
    case DataType::float16:
      return call(Pass<Float16, Float32Product>{});
    default:
      return call(Pass<float, Float32Product>{});
  }
}

}  // namespace vleff::VLEFF_ISA

// vleff._dev: the kernel layer over NumPy arrays, without torch, at any instruction-set level that the
// processor has.
#include <pybind11/stl.h>

#include "arrays.h"

PYBIND11_MODULE(_dev, module) {
  module.doc() = "The kernels over NumPy arrays, for tests.";
  module.def(
      "isa_levels",
      [] {
        std::vector<std::string> levels;
        for (int level = 0; level <= static_cast<int>(vleff::detected_isa()); ++level) {
          levels.emplace_back(vleff::isa_name(static_cast<vleff::Isa>(level)));
        }
        return levels;
      },
      "The instruction-set levels that this processor has.");
  vleff::dev::bind_token_gather_attention(module);
  vleff::dev::bind_residual_layer_norm(module);
  vleff::dev::bind_head_masked_linear(module);
}

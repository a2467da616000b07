#include <torch/csrc/stable/library.h>

#include <string>

namespace vleff {
namespace {

// JSON. The macros come from CMakeLists.txt; those of CUDA are empty strings in a CPU-only build.
std::string build_info() {
  return std::string("{\"compiler\": \"") + VLEFF_COMPILER + "\", \"cuda\": \"" + VLEFF_CUDA_VERSION +
         "\", \"cuda_architectures\": \"" + VLEFF_CUDA_ARCHITECTURES + "\"}";
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CompositeExplicitAutograd, library) {
  library.impl("build_info", TORCH_BOX(&vleff::build_info));
}

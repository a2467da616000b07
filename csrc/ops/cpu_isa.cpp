#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/cpu/isa.h"

namespace vleff {
namespace {

std::string cpu_isa() {
  return isa_name(active_isa());
}

std::vector<std::string> cpu_isa_levels() {
  std::vector<std::string> levels;
  for (int level = 0; level <= static_cast<int>(detected_isa()); ++level) {
    levels.emplace_back(isa_name(static_cast<Isa>(level)));
  }
  return levels;
}

void set_cpu_isa(std::string name) {
  Isa isa;
  if (parse_isa(name.c_str(), &isa) && set_active_isa(isa)) return;
  std::string expected;
  for (const std::string& level : cpu_isa_levels()) expected += (expected.empty() ? "" : ", ") + level;
  throw std::runtime_error("set_cpu_isa: argument 'name': expected a level of this processor (" + expected +
                           "), got '" + name + "'");
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&vleff::cpu_isa));
  library.impl("set_cpu_isa", TORCH_BOX(&vleff::set_cpu_isa));
  library.impl("cpu_isa_levels", TORCH_BOX(&vleff::cpu_isa_levels));
}

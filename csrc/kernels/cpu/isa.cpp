#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vleff {
namespace {

constexpr const char* names[isa_count] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16"};

#if defined(__x86_64__)
// Linux saves the tile registers only of processes that have asked for it.
bool may_use_tiles() {
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
}
#endif

// What VLEFF_CPU_ISA asks for, else the best level of this processor.
Isa initial_isa() {
  const char* name = std::getenv("VLEFF_CPU_ISA");
  if (name == nullptr || *name == '\0') return detected_isa();
  Isa isa;
  if (!parse_isa(name, &isa)) {
    throw std::runtime_error(std::string("environment variable VLEFF_CPU_ISA: expected baseline, avx2, "
                                         "avx512, avx512_bf16 or amx_bf16, got '") +
                             name + "'");
  }
  if (isa > detected_isa()) {
    throw std::runtime_error(std::string("environment variable VLEFF_CPU_ISA: expected at most '") +
                             isa_name(detected_isa()) + "', the highest level of this processor, got '" +
                             name + "'");
  }
  return isa;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{initial_isa()};  // a throwing initial_isa is called again next time
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  return names[static_cast<int>(isa)];
}

bool parse_isa(const char* name, Isa* isa) {
  for (int level = 0; level < isa_count; ++level) {
    if (std::strcmp(name, names[level]) == 0) {
      *isa = static_cast<Isa>(level);
      return true;
    }
  }
  return false;
}

// __builtin_cpu_supports also asks whether the operating system saves the wide registers (xgetbv).
Isa detected_isa() {
#if defined(__x86_64__)
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))) {
    return Isa::baseline;
  }
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))) {
    return Isa::avx2;
  }
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && may_use_tiles()
             ? Isa::amx_bf16
             : Isa::avx512_bf16;
#else
  return Isa::baseline;
#endif
}

Isa active_isa() {
  return active().load(std::memory_order_relaxed);
}

bool set_active_isa(Isa isa) {
  if (isa > detected_isa()) return false;
  active().store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace vleff

#pragma once

namespace vleff {

// Instruction-set levels, each a superset of the one before. Every kernel is compiled once per level;
// the level is chosen at run time.
enum class Isa { baseline, avx2, avx512, avx512_bf16, amx_bf16 };
constexpr int isa_count = 5;

const char* isa_name(Isa isa);
bool parse_isa(const char* name, Isa* isa);

// The highest level that this processor has.
Isa detected_isa();

// The level that kernels use: the detected one, or a lower one by VLEFF_CPU_ISA or set_active_isa.
Isa active_isa();

// Returns false, and changes nothing, if this processor lacks the level.
bool set_active_isa(Isa isa);

}  // namespace vleff

// An op's kernel source is compiled once per level with VLEFF_ISA set to the level's name. It defines its
// table of functions as `vleff::VLEFF_ISA::NAME`; this macro, used once in the op's torch side, declares
// those tables, a function NAME_at(isa) that returns one level's and a function active_NAME() that returns
// the active level's.
#if defined(__x86_64__)
#define VLEFF_DISPATCH(Table, name)                                                           \
  namespace vleff {                                                                           \
  namespace baseline {                                                                        \
  extern const Table name;                                                                    \
  }                                                                                           \
  namespace avx2 {                                                                            \
  extern const Table name;                                                                    \
  }                                                                                           \
  namespace avx512 {                                                                          \
  extern const Table name;                                                                    \
  }                                                                                           \
  namespace avx512_bf16 {                                                                     \
  extern const Table name;                                                                    \
  }                                                                                           \
  namespace amx_bf16 {                                                                        \
  extern const Table name;                                                                    \
  }                                                                                           \
  inline const Table& name##_at(Isa isa) {                                                    \
    const Table* tables[] = {&baseline::name, &avx2::name, &avx512::name, &avx512_bf16::name, \
                             &amx_bf16::name};                                                \
    return *tables[static_cast<int>(isa)];                                                    \
  }                                                                                           \
  inline const Table& active_##name() {                                                       \
    return name##_at(active_isa());                                                           \
  }                                                                                           \
  }
#else
#define VLEFF_DISPATCH(Table, name)     \
  namespace vleff {                     \
  namespace baseline {                  \
  extern const Table name;              \
  }                                     \
  inline const Table& name##_at(Isa) {  \
    return baseline::name;              \
  }                                     \
  inline const Table& active_##name() { \
    return name##_at(active_isa());     \
  }                                     \
  }
#endif

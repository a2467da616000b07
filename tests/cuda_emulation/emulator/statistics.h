#pragma once
#include <cstdint>
#include <string>

namespace emulation {

// What kernels have done, counted over all blocks. "Passes" of shared memory are the turns that the banks
// need; without bank conflicts there are as many as `ideal`.
#define EMULATION_COUNTERS(COUNTER)                                                             \
  COUNTER(launches)                                                                             \
  COUNTER(blocks)                                                                               \
  COUNTER(warp_instructions)                                                                    \
  COUNTER(tensor_core_operations) /* a multiplication and an addition are two */                \
  COUNTER(float_operations)       /* of other float32 instructions; a fused one counts twice */ \
  COUNTER(special_function_operations)                                                          \
  COUNTER(block_barriers)                                                                       \
  COUNTER(global_bytes_read)                                                                    \
  COUNTER(global_bytes_written)                                                                 \
  COUNTER(global_sectors_read) /* of 32 bytes, that the requests of a warp touch */             \
  COUNTER(global_sectors_written)                                                               \
  COUNTER(matrix_load_passes)                                                                   \
  COUNTER(matrix_load_passes_ideal)                                                             \
  COUNTER(shared_access_passes)                                                                 \
  COUNTER(shared_access_passes_ideal)

struct Statistics {
#define EMULATION_COUNTER(name) uint64_t name = 0;
  EMULATION_COUNTERS(EMULATION_COUNTER)
#undef EMULATION_COUNTER

  void add(const Statistics& other) {
#define EMULATION_COUNTER(name) name += other.name;
    EMULATION_COUNTERS(EMULATION_COUNTER)
#undef EMULATION_COUNTER
  }

  std::string as_json() const {
    std::string text;
#define EMULATION_COUNTER(name) \
  text += (text.empty() ? "{\"" #name "\": " : ", \"" #name "\": ") + std::to_string(name);
    EMULATION_COUNTERS(EMULATION_COUNTER)
#undef EMULATION_COUNTER
    return text + "}";
  }
};

}  // namespace emulation

#pragma once
#include <cstddef>

// Memory whose end touches a page that nobody may access, so that an overrun faults at once. It starts at a
// multiple of 16 bytes, as kernels ask of their arguments; the bytes between its end and the page, and those
// before its start, are checked when it is freed. It is filled with 0xFF; once freed, every access faults.
namespace emulation {

void* allocate_guarded(size_t bytes);
void free_guarded(void* memory);

}  // namespace emulation

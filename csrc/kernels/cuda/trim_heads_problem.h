#pragma once
#include "../cpu/trim_heads.h"

// Starts the kernel on a CUDA stream and returns at once: 0, or a CUDA error number. The problem's pointers
// are on the device, all else on the host; the rank is at most 8,192.
extern "C" int vleff_trim_heads_cuda(const vleff::TrimHeadsProblem* problem, void* stream);

#pragma once
#include <cstdint>

namespace vleff {

// How a kernel asks its caller for threads. The kernel layer knows no thread library: the op that calls a
// kernel hands it one of these, built over the framework's own pool.
struct Parallel {
  int64_t threads;  // most workers that can run at a time, at least 1

  // Calls body(context, worker) once for every worker in [0, workers), possibly at the same time, and
  // returns when all have finished. Workers must not wait for each other.
  void (*run)(const Parallel& self, int64_t workers, void (*body)(void* context, int64_t worker),
              void* context);
};

}  // namespace vleff

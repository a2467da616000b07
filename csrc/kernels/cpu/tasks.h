#pragma once
#include "../parallel.h"
#include "simd.h"

// How kernels divide their scratch memory and their work.
namespace vleff::VLEFF_ISA {

// Hands out 64-byte aligned pieces of one block; with a null block it only counts.
class Arena {
 public:
  explicit Arena(void* block) : block_(static_cast<char*>(block)) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = block_ ? reinterpret_cast<T*>(block_ + used_) : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* block_;
  int64_t used_ = 0;
};

// Runs body(worker, task, next) for every task; workers take a few tasks at a time as they become free.
// `next` is the task that the worker does after this one, -1 where that is open. Results must not depend on
// which worker a task falls to.
template <class Body>
void for_each_task(const Parallel& parallel, int64_t tasks, const Body& body) {
  struct Context {
    const Body& body;
    int64_t tasks, stretch, next;
  } context{body, tasks, max(1, tasks / (32 * parallel.threads)), 0};
  parallel.run(
      parallel, min(parallel.threads, tasks),
      [](void* opaque, int64_t worker) {
        Context& shared = *static_cast<Context*>(opaque);
        while (true) {
          const int64_t begin = __atomic_fetch_add(&shared.next, shared.stretch, __ATOMIC_RELAXED);
          if (begin >= shared.tasks) return;
          const int64_t end = min(begin + shared.stretch, shared.tasks);
          for (int64_t task = begin; task < end; ++task)
            shared.body(worker, task, task + 1 < end ? task + 1 : -1);
        }
      },
      &context);
}

}  // namespace vleff::VLEFF_ISA

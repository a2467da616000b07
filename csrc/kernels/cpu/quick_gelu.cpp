#include "quick_gelu.h"

#include "activation_functions.h"

namespace vleff::VLEFF_ISA {
namespace {

constexpr int64_t elements_per_worker = 16384;  // fewer are not worth waking a thread

struct Work {
  const QuickGeluProblem& problem;
  int64_t workers;
};

template <class T>
void run_worker(void* context, int64_t worker) {
  const Work& work = *static_cast<const Work*>(context);
  const T* input = static_cast<const T*>(work.problem.input);
  T* output = static_cast<T*>(work.problem.output);
  const int64_t vectors = (work.problem.elements + lanes - 1) / lanes;
  const int64_t begin = vectors * worker / work.workers * lanes;
  const int64_t end = min(vectors * (worker + 1) / work.workers * lanes, work.problem.elements);
  int64_t at = begin;
  for (; at + lanes <= end; at += lanes) store(output + at, quick_gelu(load(input + at)));
  if (at < end) store_first(output + at, quick_gelu(load_first(input + at, end - at)), end - at);
}

void run(const QuickGeluProblem& problem, const Parallel& parallel) {
  Work work{problem, min(parallel.threads, max(1, problem.elements / elements_per_worker))};
  const auto body = problem.type == DataType::float32 ? run_worker<float> : run_worker<BFloat16>;
  parallel.run(parallel, work.workers, body, &work);
}

}  // namespace

extern const QuickGeluKernels quick_gelu_kernels = {run};

}  // namespace vleff::VLEFF_ISA

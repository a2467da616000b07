#include "trim_heads.h"

#include "activation_functions.h"
#include "element_types.h"
#include "row_sums.h"
#include "tasks.h"

namespace vleff::VLEFF_ISA {
namespace {

template <class T, class Product>
struct HeadsPass {
  // hidden: [rank rounded up to lanes]
  static void run_sample(const TrimHeadsProblem& p, int64_t sample, float* hidden) {
    const T* weight = static_cast<const T*>(p.hidden_weight);
    const int64_t width = p.widths[0] + p.widths[1];
    const float* first = p.inputs[0] + sample * p.widths[0];
    const float* second = p.widths[1] ? p.inputs[1] + sample * p.widths[1] : nullptr;
    for (int64_t i = 0; i < p.rank; ++i) {
      hidden[i] = dot(first, weight + i * width, p.widths[0]);
      if (second) hidden[i] += dot(second, weight + i * width + p.widths[0], p.widths[1]);
    }
    const T* bias = static_cast<const T*>(p.hidden_bias);
    for (int64_t i = 0; i < p.rank; i += lanes) {
      const int64_t count = p.rank - i;
      store_first(hidden + i, gelu(load_first(hidden + i, count) + load_first(bias + i, count)), count);
    }
    float* logits = p.logits + sample * p.heads;
    bool* kept = p.kept + sample * p.heads;
    const T* scores = static_cast<const T*>(p.score_weight);
    int64_t best = 0;
    for (int64_t head = 0; head < p.heads; ++head) {
      const T* shift = static_cast<const T*>(p.score_bias) + head;
      logits[head] = dot(hidden, scores + head * p.rank, p.rank) + load_first(shift, 1)[0];
      kept[head] = logits[head] > p.threshold;
      if (logits[head] > logits[best]) best = head;
    }
    if (p.heads > 0) kept[best] = true;
  }

  static void run(const TrimHeadsProblem& problem, float* scratch, int64_t stride, const Parallel& parallel) {
    for_each_task(parallel, problem.batch, [&](int64_t worker, int64_t sample, int64_t) {
      run_sample(problem, sample, scratch + worker * stride);
    });
  }
};

int64_t scratch_bytes(int64_t rank) {
  return round_up(rank * static_cast<int64_t>(sizeof(float)), 64);
}

void run(const TrimHeadsProblem& problem, void* scratch, const Parallel& parallel) {
  const int64_t stride = scratch_bytes(problem.rank) / static_cast<int64_t>(sizeof(float));
  with_type<HeadsPass>(problem.type,
                       [&](auto pass) { pass.run(problem, static_cast<float*>(scratch), stride, parallel); });
}

}  // namespace

extern const TrimHeadsKernels trim_heads_kernels = {scratch_bytes, run};

}  // namespace vleff::VLEFF_ISA

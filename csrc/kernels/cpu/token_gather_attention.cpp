#include "token_gather_attention.h"

#include "attention_backward.h"
#include "attention_forward.h"
#include "element_types.h"

namespace vleff::VLEFF_ISA {
namespace {

template <template <class, class> class Pass>
int64_t scratch_bytes(const AttentionProblem& problem, int64_t max_q, int64_t max_k) {
  return with_type<Pass>(problem.type, [&](auto pass) { return pass.scratch_bytes(problem, max_q, max_k); });
}

template <template <class, class> class Pass, class Arguments>
void run(const AttentionProblem& problem, const Arguments& arguments, int64_t max_q, int64_t max_k,
         void* scratch, const Parallel& parallel) {
  with_type<Pass>(problem.type,
                  [&](auto pass) { pass.run(problem, arguments, max_q, max_k, scratch, parallel); });
}

}  // namespace

extern const TokenGatherAttentionKernels token_gather_attention_kernels = {
    scratch_bytes<Forward>, run<Forward, AttentionOutput>, scratch_bytes<Backward>,
    run<Backward, AttentionGradient>};

}  // namespace vleff::VLEFF_ISA

#include "copy_attention.h"

#include "copy_attention_rows.h"
#include "copy_attention_targets.h"
#include "element_types.h"

namespace vleff::VLEFF_ISA {
namespace {

template <class T, class>
using RowsPass = CopyRowsPass<T>;

int64_t forward_scratch_bytes(const CopyProblem& problem) {
  return with_type<CopyForward>(problem.type, [&](auto pass) { return pass.scratch_bytes(problem); });
}

void forward(const CopyProblem& problem, const CopyTargets& targets, const CopyOutput& output, void* scratch,
             const Parallel& parallel) {
  with_type<CopyForward>(problem.type,
                         [&](auto pass) { pass.run(problem, targets, output, scratch, parallel); });
}

int64_t backward_scratch_bytes(const CopyProblem& problem, bool coverage) {
  return with_type<CopyBackward>(problem.type,
                                 [&](auto pass) { return pass.scratch_bytes(problem, coverage); });
}

void backward(const CopyProblem& problem, const CopyTargets& targets, const CopyGradient& gradient,
              void* scratch, const Parallel& parallel) {
  with_type<CopyBackward>(problem.type,
                          [&](auto pass) { pass.run(problem, targets, gradient, scratch, parallel); });
}

int64_t rows_scratch_bytes(const CopyProblem& problem) {
  return with_type<RowsPass>(problem.type, [&](auto pass) { return pass.scratch_bytes(problem); });
}

void rows(const CopyProblem& problem, const CopyRows& all, void* scratch, const Parallel& parallel) {
  with_type<RowsPass>(problem.type, [&](auto pass) { pass.run(problem, all, scratch, parallel); });
}

}  // namespace

extern const CopyAttentionKernels copy_attention_kernels = {
    forward_scratch_bytes, forward, backward_scratch_bytes, backward, rows_scratch_bytes, rows};

}  // namespace vleff::VLEFF_ISA

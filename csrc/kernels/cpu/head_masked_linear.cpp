#include "head_masked_linear.h"

#include "element_types.h"
#include "head_masked_grad_weight.h"
#include "head_masked_products.h"

namespace vleff::VLEFF_ISA {
namespace {

int64_t elements_per_word(DataType type) {
  return with_type<HeadMaskedProducts>(type, [](auto products) { return products.elements_per_word(); });
}

int64_t packed_bytes(const HeadMaskedWeight& weight) {
  return with_type<HeadMaskedProducts>(weight.type,
                                       [&](auto products) { return products.packed_bytes(weight); });
}

void pack(const HeadMaskedWeight& weight, const HeadVectors& vectors, const HeadMask& mask, void* packed,
          const Parallel& parallel) {
  with_type<HeadMaskedProducts>(
      weight.type, [&](auto products) { products.pack(weight, vectors, mask, packed, parallel); });
}

int64_t scratch_bytes(const HeadMaskedProblem& problem) {
  return with_type<HeadMaskedProducts>(problem.weight.type,
                                       [&](auto products) { return products.scratch_bytes(problem); });
}

void run(const HeadMaskedProblem& problem, void* scratch, const Parallel& parallel) {
  with_type<HeadMaskedProducts>(problem.weight.type,
                                [&](auto products) { products.run(problem, scratch, parallel); });
}

int64_t grad_weight_scratch_bytes(const HeadMaskedGradWeightProblem& problem) {
  return with_type<HeadMaskedGradWeight>(problem.type,
                                         [&](auto products) { return products.scratch_bytes(problem); });
}

void grad_weight(const HeadMaskedGradWeightProblem& problem, void* scratch, const Parallel& parallel) {
  with_type<HeadMaskedGradWeight>(problem.type,
                                  [&](auto products) { products.run(problem, scratch, parallel); });
}

}  // namespace

extern const HeadMaskedLinearKernels head_masked_linear_kernels = {
    elements_per_word, lanes, packed_bytes, pack, scratch_bytes, run, grad_weight_scratch_bytes, grad_weight};

}  // namespace vleff::VLEFF_ISA

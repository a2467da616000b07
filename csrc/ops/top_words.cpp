#include "../kernels/cpu/top_words.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cpu/isa.h"
#include "checks.h"
#include "parallel.h"

VLEFF_DISPATCH(TopWordsKernels, top_words_kernels)

namespace vleff {
namespace {

std::tuple<Tensor, Tensor> top_words(Tensor rows, int64_t count) {
  const char* op = "top_words";
  check_tensor(op, "rows", rows, {ScalarType::Float}, {any_size, any_size}, "[rows, words]");
  if (count < 0) reject(op, "count", "at least 0", text(count));
  rows = as_contiguous(rows);
  Tensor values = torch::stable::empty({rows.size(0), count}, ScalarType::Float);
  Tensor words = torch::stable::empty({rows.size(0), count}, ScalarType::Long);
  const TopWordsProblem problem{rows.size(0),
                                rows.size(1),
                                count,
                                rows.const_data_ptr<float>(),
                                values.mutable_data_ptr<float>(),
                                words.mutable_data_ptr<int64_t>()};
  active_top_words_kernels().run(problem, torch_parallel());
  return {values, words};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("top_words", TORCH_BOX(&vleff::top_words));
}

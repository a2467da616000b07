#include "../kernels/cpu/copy_attention_top.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cpu/isa.h"
#include "copy_attention_inputs.h"
#include "parallel.h"

VLEFF_DISPATCH(CopyAttentionTopKernels, copy_attention_top_kernels)

namespace vleff {
namespace {

std::tuple<Tensor, Tensor, Tensor> top(Tensor queries, Tensor query_offsets, int64_t max_queries,
                                       Tensor question_keys, Tensor question_ids, Tensor question_offsets,
                                       int64_t max_question, Tensor paragraph_keys, Tensor paragraph_ids,
                                       Tensor paragraph_offsets, int64_t max_paragraph, Tensor gate_logits,
                                       Tensor hidden, Tensor weight, OptionalTensor bias,
                                       int64_t extended_size, int64_t count, int64_t watched, double scale) {
  const char* op = "copy_attention_top";
  CopyInputs inputs =
      checked_copy_inputs(op, queries, query_offsets, max_queries,
                          question_memory(question_keys, question_ids, question_offsets, max_question),
                          paragraph_memory(paragraph_keys, paragraph_ids, paragraph_offsets, max_paragraph),
                          gate_logits, extended_size, scale);
  const ScalarType type = queries.scalar_type();
  check_tensor(op, "hidden", hidden, {type}, {inputs.rows, any_size}, "[rows, hidden width]");
  const int64_t width = hidden.size(1);
  if (width < 1) reject(op, "hidden", "at least one column", describe(hidden));
  check_tensor(op, "weight", weight, {type}, {any_size, width}, "[words, hidden width]");
  const int64_t words = weight.size(0);
  if (words < 1) reject(op, "weight", "at least one word", describe(weight));
  if (bias) check_tensor(op, "bias", *bias, {type}, {words}, "[words]");
  if (extended_size < words || extended_size > INT32_MAX) {
    reject(op, "extended_size", text("from ", words, ", the words of weight, to 2^31 - 1"),
           text(extended_size));
  }
  if (count < 0) reject(op, "count", "at least 0", text(count));
  if (watched < 0 || watched >= words)
    reject(op, "watched", text("a word in [0, ", words, ")"), text(watched));
  CopyTopProblem problem{inputs.problem, {}, extended_size, count, watched};
  problem.vocabulary = {inputs.problem.type,
                        inputs.rows,
                        width,
                        words,
                        inputs.hold(hidden).const_data_ptr(),
                        inputs.hold(weight).const_data_ptr(),
                        bias ? inputs.hold(*bias).const_data_ptr() : nullptr,
                        nullptr};
  Tensor log_probs = torch::stable::empty({inputs.rows, count}, ScalarType::Float);
  Tensor top_words = torch::stable::empty({inputs.rows, count}, ScalarType::Long);
  Tensor watched_log_probs = torch::stable::empty({inputs.rows}, ScalarType::Float);
  const CopyTopOutput output{log_probs.mutable_data_ptr<float>(), top_words.mutable_data_ptr<int64_t>(),
                             watched_log_probs.mutable_data_ptr<float>()};
  const CopyAttentionTopKernels& kernels = active_copy_attention_top_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(kernels.scratch_bytes(problem, parallel.threads));
  kernels.run(problem, output, scratch.data(), parallel);
  return {log_probs, top_words, watched_log_probs};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("copy_attention_top", TORCH_BOX(&vleff::top));
}

#include "../kernels/cpu/copy_attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cpu/isa.h"
#include "copy_attention_inputs.h"
#include "parallel.h"

VLEFF_DISPATCH(CopyAttentionKernels, copy_attention_kernels)

namespace vleff {
namespace {

CopyTargets checked_targets(const char* op, const Tensor& generate_log_probs, const Tensor& targets,
                            CopyInputs& inputs) {
  check_per_target(op, "generate_log_probs", generate_log_probs, inputs.rows, DeviceType::CPU);
  return {inputs.hold(generate_log_probs).const_data_ptr<float>(),
          inputs.hold(checked_target_words(op, targets, inputs.rows, any_word)).const_data_ptr<int32_t>()};
}

Tensor floats(std::initializer_list<int64_t> shape) {
  return torch::stable::empty(shape, ScalarType::Float);
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor queries, Tensor query_offsets, int64_t max_queries,
                                           Tensor question_keys, Tensor question_ids, Tensor question_offsets,
                                           int64_t max_question, Tensor paragraph_keys, Tensor paragraph_ids,
                                           Tensor paragraph_offsets, int64_t max_paragraph,
                                           Tensor gate_logits, Tensor generate_log_probs, Tensor targets,
                                           double scale, bool coverage) {
  const char* op = "copy_attention";
  CopyInputs inputs =
      checked_copy_inputs(op, queries, query_offsets, max_queries,
                          question_memory(question_keys, question_ids, question_offsets, max_question),
                          paragraph_memory(paragraph_keys, paragraph_ids, paragraph_offsets, max_paragraph),
                          gate_logits, any_word, scale);
  const CopyTargets words = checked_targets(op, generate_log_probs, targets, inputs);
  Tensor log_probs = floats({inputs.rows});
  Tensor coverage_loss = floats({coverage ? inputs.rows : 0});
  Tensor statistics = floats({inputs.rows, copy_sources, 4});
  const CopyOutput output{log_probs.mutable_data_ptr<float>(),
                          reinterpret_cast<CopyStatistics*>(statistics.mutable_data_ptr<float>()),
                          coverage ? coverage_loss.mutable_data_ptr<float>() : nullptr};
  const CopyAttentionKernels& kernels = active_copy_attention_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.forward_scratch_bytes(inputs.problem));
  kernels.forward(inputs.problem, words, output, scratch.data(), parallel);
  return {log_probs, coverage_loss, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_log_probs, OptionalTensor grad_coverage_loss, Tensor log_probs, Tensor statistics,
    Tensor queries, Tensor query_offsets, int64_t max_queries, Tensor question_keys, Tensor question_ids,
    Tensor question_offsets, int64_t max_question, Tensor paragraph_keys, Tensor paragraph_ids,
    Tensor paragraph_offsets, int64_t max_paragraph, Tensor gate_logits, Tensor generate_log_probs,
    Tensor targets, double scale) {
  const char* op = "copy_attention_backward";
  CopyInputs inputs =
      checked_copy_inputs(op, queries, query_offsets, max_queries,
                          question_memory(question_keys, question_ids, question_offsets, max_question),
                          paragraph_memory(paragraph_keys, paragraph_ids, paragraph_offsets, max_paragraph),
                          gate_logits, any_word, scale);
  const CopyTargets words = checked_targets(op, generate_log_probs, targets, inputs);
  const auto per_target = [&](const char* argument, const Tensor& tensor) {
    check_per_target(op, argument, tensor, inputs.rows, DeviceType::CPU);
    return inputs.hold(tensor).const_data_ptr<float>();
  };
  CopyGradient gradient{};
  gradient.grad_log_probs = per_target("grad_log_probs", grad_log_probs);
  gradient.log_probs = per_target("log_probs", log_probs);
  if (grad_coverage_loss) {
    gradient.grad_coverage_loss = per_target("grad_coverage_loss", *grad_coverage_loss);
  }
  check_copy_statistics(op, statistics, inputs.rows, DeviceType::CPU);
  gradient.statistics =
      reinterpret_cast<const CopyStatistics*>(inputs.hold(statistics).const_data_ptr<float>());

  const ScalarType type = queries.scalar_type();
  const int64_t width = inputs.problem.width;
  const auto result = [&](const Tensor& like) { return torch::stable::empty({like.size(0), width}, type); };
  Tensor grad_queries = result(queries), grad_question_keys = result(question_keys),
         grad_paragraph_keys = result(paragraph_keys);
  Tensor grad_gate_logits = torch::stable::empty({inputs.rows, 1 + copy_sources}, type);
  Tensor grad_generate_log_probs = floats({inputs.rows});
  gradient.grad_queries = grad_queries.mutable_data_ptr();
  gradient.grad_keys[0] = grad_question_keys.mutable_data_ptr();
  gradient.grad_keys[1] = grad_paragraph_keys.mutable_data_ptr();
  gradient.grad_gate_logits = grad_gate_logits.mutable_data_ptr();
  gradient.grad_generate_log_probs = grad_generate_log_probs.mutable_data_ptr<float>();

  const CopyAttentionKernels& kernels = active_copy_attention_kernels();
  const Parallel parallel = torch_parallel();
  const bool coverage = grad_coverage_loss.has_value();
  const Scratch scratch(parallel.threads * kernels.backward_scratch_bytes(inputs.problem, coverage));
  kernels.backward(inputs.problem, words, gradient, scratch.data(), parallel);
  return {grad_queries, grad_question_keys, grad_paragraph_keys, grad_gate_logits, grad_generate_log_probs};
}

Tensor rows(Tensor queries, Tensor query_offsets, int64_t max_queries, Tensor question_keys,
            Tensor question_ids, Tensor question_offsets, int64_t max_question, Tensor paragraph_keys,
            Tensor paragraph_ids, Tensor paragraph_offsets, int64_t max_paragraph, Tensor gate_logits,
            Tensor vocabulary_logits, int64_t extended_size, double scale) {
  const char* op = "copy_attention_rows";
  CopyInputs inputs =
      checked_copy_inputs(op, queries, query_offsets, max_queries,
                          question_memory(question_keys, question_ids, question_offsets, max_question),
                          paragraph_memory(paragraph_keys, paragraph_ids, paragraph_offsets, max_paragraph),
                          gate_logits, extended_size, scale);
  check_vocabulary(op, queries, vocabulary_logits, extended_size, DeviceType::CPU);
  const int64_t words = vocabulary_logits.size(1);
  Tensor log_probs = floats({inputs.rows, extended_size});
  const CopyRows all{words, extended_size, inputs.hold(vocabulary_logits).const_data_ptr(),
                     log_probs.mutable_data_ptr<float>()};
  const CopyAttentionKernels& kernels = active_copy_attention_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.rows_scratch_bytes(inputs.problem));
  kernels.rows(inputs.problem, all, scratch.data(), parallel);
  return log_probs;
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("copy_attention", TORCH_BOX(&vleff::forward));
  library.impl("copy_attention_backward", TORCH_BOX(&vleff::backward));
  library.impl("copy_attention_rows", TORCH_BOX(&vleff::rows));
}

#include "../kernels/cpu/copy_attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "copy_attention_checks.h"
#include "parallel.h"
#include "target_words.h"

VLEFF_DISPATCH(CopyAttentionKernels, copy_attention_kernels)

namespace vleff {
namespace {

// Checked; holds the tensors that `problem` points into.
struct Inputs {
  CopyProblem problem{};
  std::vector<Tensor> held;
  int64_t rows = 0;

  const Tensor& hold(const Tensor& tensor) {
    held.push_back(as_contiguous(tensor));
    return held.back();
  }
};

CopySource checked_source(const char* op, const Memory& memory, ScalarType type, int64_t width, int64_t batch,
                          int64_t extended_size, Inputs& inputs) {
  check_memory(op, memory, type, width, batch, DeviceType::CPU);
  const int64_t total = memory.keys.size(0);
  CopySource source;
  source.keys = inputs.hold(memory.keys).const_data_ptr();
  source.ids = inputs.hold(memory.ids).const_data_ptr<int32_t>();
  source.offsets = inputs.hold(memory.offsets).const_data_ptr<int32_t>();
  check_words(op, memory.names[1], source.ids, total, extended_size);
  source.longest =
      check_offsets(op, memory.names[2], source.offsets, batch, total, memory.names[3], memory.longest);
  return source;
}

// extended_size: ids are below it.
Inputs checked_inputs(const char* op, const Tensor& queries, const Tensor& query_offsets, int64_t max_queries,
                      const Memory& question, const Memory& paragraph, const Tensor& gate_logits,
                      int64_t extended_size, double scale) {
  check_queries(op, queries, query_offsets, gate_logits, scale, DeviceType::CPU);
  const ScalarType type = queries.scalar_type();
  const int64_t rows = queries.size(0), width = queries.size(1);
  Inputs inputs;
  inputs.rows = rows;
  CopyProblem& problem = inputs.problem;
  problem.type = data_type(queries);
  problem.batch = query_offsets.numel() - 1;
  problem.width = width;
  problem.queries = inputs.hold(queries).const_data_ptr();
  problem.query_offsets = inputs.hold(query_offsets).const_data_ptr<int32_t>();
  problem.most_queries = check_offsets(op, "query_offsets", problem.query_offsets, problem.batch, rows,
                                       "max_queries", max_queries);
  problem.sources[0] = checked_source(op, question, type, width, problem.batch, extended_size, inputs);
  problem.sources[1] = checked_source(op, paragraph, type, width, problem.batch, extended_size, inputs);
  problem.gate_logits = inputs.hold(gate_logits).const_data_ptr();
  problem.scale = static_cast<float>(scale);
  return inputs;
}

CopyTargets checked_targets(const char* op, const Tensor& generate_log_probs, const Tensor& targets,
                            Inputs& inputs) {
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
  Inputs inputs =
      checked_inputs(op, queries, query_offsets, max_queries,
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
  Inputs inputs =
      checked_inputs(op, queries, query_offsets, max_queries,
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
  Inputs inputs =
      checked_inputs(op, queries, query_offsets, max_queries,
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

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "../kernels/cuda/copy_attention_problem.h"
#include "copy_attention_checks.h"
#include "cuda_stream.h"

namespace vleff {
namespace {

Tensor floats_like(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(tensor, shape, ScalarType::Float);
}

// Of checked queries; holds the tensors that `problem` points into. Only shapes are checked: reading the
// values would wait for the device.
struct Inputs {
  cuda::CopyLogits problem{};
  std::vector<Tensor> held;

  Inputs(const char* op, const Tensor& queries, const Tensor& query_offsets, int64_t max_queries,
         const Memory& question, const Memory& paragraph, const Tensor& gate_logits, double scale) {
    const Device device = cuda_device_of(queries);
    if (max_queries < 0) reject(op, "max_queries", "a length of at least 0", text(max_queries));
    const int64_t rows = queries.size(0);
    problem.type = data_type(queries);
    problem.batch = query_offsets.numel() - 1;
    problem.width = queries.size(1);
    problem.queries = hold(queries).const_data_ptr();
    // At least one, as rows that belong to no sample need a block too.
    const int64_t longest = std::min(std::max<int64_t>(max_queries, 1), rows);
    problem.query_rows = {hold(query_offsets).const_data_ptr<int32_t>(), {}, rows, rows, longest};
    const Memory* memories[copy_sources] = {&question, &paragraph};
    for (int source = 0; source < copy_sources; ++source) {
      const Memory& memory = *memories[source];
      check_memory(op, memory, queries.scalar_type(), problem.width, problem.batch, device);
      if (memory.longest < 0) reject(op, memory.names[3], "a length of at least 0", text(memory.longest));
      const int64_t total = memory.keys.size(0), longest = std::min(memory.longest, total);
      Tensor logits = floats_like(queries, {rows, longest});
      held.push_back(logits);
      problem.memories[source] = {hold(memory.keys).const_data_ptr(),
                                  hold(memory.ids).const_data_ptr<int32_t>(),
                                  {hold(memory.offsets).const_data_ptr<int32_t>(), {}, total, total, longest},
                                  logits.mutable_data_ptr<float>(),
                                  longest};
    }
    problem.gate_logits = hold(gate_logits).const_data_ptr();
    problem.scale = static_cast<float>(scale);
  }

  Tensor hold(const Tensor& tensor) {
    held.push_back(as_contiguous(tensor));
    return held.back();
  }
  int64_t rows() const { return problem.query_rows.total; }
};

cuda::CopyOfTargets targets_of(const char* op, Inputs& inputs, const Tensor& generate_log_probs,
                               const Tensor& targets) {
  const Device device = generate_log_probs.device();
  check_per_target(op, "generate_log_probs", generate_log_probs, inputs.rows(), device);
  check_tensor(op, "targets", targets, {ScalarType::Int, ScalarType::Long}, {inputs.rows()}, "[targets]",
               device);
  cuda::CopyOfTargets result{};
  result.logits = inputs.problem;
  result.generate_log_probs = inputs.hold(generate_log_probs).const_data_ptr<float>();
  result.words = {inputs.hold(targets).const_data_ptr(), targets.scalar_type() == ScalarType::Long};
  return result;
}

std::tuple<Tensor, Tensor, Tensor> forward_cuda(Tensor queries, Tensor query_offsets, int64_t max_queries,
                                                Tensor question_keys, Tensor question_ids,
                                                Tensor question_offsets, int64_t max_question,
                                                Tensor paragraph_keys, Tensor paragraph_ids,
                                                Tensor paragraph_offsets, int64_t max_paragraph,
                                                Tensor gate_logits, Tensor generate_log_probs, Tensor targets,
                                                double scale, bool coverage) {
  const char* op = "copy_attention";
  check_queries(op, queries, query_offsets, gate_logits, scale, cuda_device_of(queries));
  const torch::stable::accelerator::DeviceGuard guard(queries.get_device_index());
  Inputs inputs(op, queries, query_offsets, max_queries,
                question_memory(question_keys, question_ids, question_offsets, max_question),
                paragraph_memory(paragraph_keys, paragraph_ids, paragraph_offsets, max_paragraph),
                gate_logits, scale);
  cuda::CopyOfTargets call = targets_of(op, inputs, generate_log_probs, targets);
  // Rows of no sample stay impossible, and uncovered.
  Tensor log_probs = floats_like(queries, {inputs.rows()});
  torch::stable::fill_(log_probs, -std::numeric_limits<double>::infinity());
  Tensor coverage_loss = torch::stable::new_zeros(queries, {coverage ? inputs.rows() : 0}, ScalarType::Float);
  Tensor statistics = torch::stable::new_zeros(queries, {inputs.rows(), copy_sources, 4}, ScalarType::Float);
  call.log_probs = log_probs.mutable_data_ptr<float>();
  call.statistics = reinterpret_cast<CopyStatistics*>(statistics.mutable_data_ptr<float>());
  call.coverage_loss = coverage ? coverage_loss.mutable_data_ptr<float>() : nullptr;
  check_started(op, vleff_copy_attention_cuda(&call, current_stream(queries)));
  return {log_probs, coverage_loss, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_cuda(
    Tensor grad_log_probs, OptionalTensor grad_coverage_loss, Tensor log_probs, Tensor statistics,
    Tensor queries, Tensor query_offsets, int64_t max_queries, Tensor question_keys, Tensor question_ids,
    Tensor question_offsets, int64_t max_question, Tensor paragraph_keys, Tensor paragraph_ids,
    Tensor paragraph_offsets, int64_t max_paragraph, Tensor gate_logits, Tensor generate_log_probs,
    Tensor targets, double scale) {
  const char* op = "copy_attention_backward";
  check_queries(op, queries, query_offsets, gate_logits, scale, cuda_device_of(queries));
  const torch::stable::accelerator::DeviceGuard guard(queries.get_device_index());
  Inputs inputs(op, queries, query_offsets, max_queries,
                question_memory(question_keys, question_ids, question_offsets, max_question),
                paragraph_memory(paragraph_keys, paragraph_ids, paragraph_offsets, max_paragraph),
                gate_logits, scale);
  const Device device = cuda_device_of(queries);
  const int64_t rows = inputs.rows(), width = inputs.problem.width;
  cuda::CopyOfTargetsGradient call{};
  call.targets = targets_of(op, inputs, generate_log_probs, targets);
  const auto per_target = [&](const char* argument, const Tensor& tensor) {
    check_per_target(op, argument, tensor, rows, device);
    return inputs.hold(tensor).const_data_ptr<float>();
  };
  call.grad_log_probs = per_target("grad_log_probs", grad_log_probs);
  if (grad_coverage_loss) call.grad_coverage_loss = per_target("grad_coverage_loss", *grad_coverage_loss);
  check_copy_statistics(op, statistics, rows, device);
  // only read
  call.targets.log_probs = const_cast<float*>(per_target("log_probs", log_probs));
  call.targets.statistics =
      reinterpret_cast<CopyStatistics*>(const_cast<float*>(inputs.hold(statistics).const_data_ptr<float>()));

  // Rows of no sample have no gradient.
  const auto result = [&](const Tensor& like) {
    return torch::stable::new_zeros(queries, {like.size(0), width});
  };
  Tensor grad_queries = result(queries), grad_question_keys = result(question_keys),
         grad_paragraph_keys = result(paragraph_keys);
  Tensor grad_gate_logits = torch::stable::new_zeros(queries, {rows, 1 + copy_sources});
  Tensor grad_generate_log_probs = torch::stable::new_zeros(queries, {rows}, ScalarType::Float);
  Tensor factors = floats_like(queries, {rows}), partial = floats_like(queries, {rows, width});
  call.factors = factors.mutable_data_ptr<float>();
  call.partial = partial.mutable_data_ptr<float>();
  call.grad_queries = grad_queries.mutable_data_ptr();
  call.grad_keys[0] = grad_question_keys.mutable_data_ptr();
  call.grad_keys[1] = grad_paragraph_keys.mutable_data_ptr();
  call.grad_gate_logits = grad_gate_logits.mutable_data_ptr();
  call.grad_generate_log_probs = grad_generate_log_probs.mutable_data_ptr<float>();
  for (int source = 0; source < copy_sources; ++source) {
    constexpr int64_t whole = 8;  // elements, at least 16 bytes
    const int64_t stride = inputs.problem.memories[source].stride;
    call.gradient_stride[source] = (stride + whole - 1) / whole * whole;
    Tensor gradients = torch::stable::new_empty(queries, {rows, call.gradient_stride[source]});
    inputs.held.push_back(gradients);
    call.logit_gradients[source] = gradients.mutable_data_ptr();
    if (!grad_coverage_loss) continue;
    Tensor covered = floats_like(queries, {rows, stride});
    inputs.held.push_back(covered);
    call.covered[source] = covered.mutable_data_ptr<float>();
  }
  check_started(op, vleff_copy_attention_backward_cuda(&call, current_stream(queries)));
  return {grad_queries, grad_question_keys, grad_paragraph_keys, grad_gate_logits, grad_generate_log_probs};
}

Tensor rows_cuda(Tensor queries, Tensor query_offsets, int64_t max_queries, Tensor question_keys,
                 Tensor question_ids, Tensor question_offsets, int64_t max_question, Tensor paragraph_keys,
                 Tensor paragraph_ids, Tensor paragraph_offsets, int64_t max_paragraph, Tensor gate_logits,
                 Tensor vocabulary_logits, int64_t extended_size, double scale) {
  const char* op = "copy_attention_rows";
  check_queries(op, queries, query_offsets, gate_logits, scale, cuda_device_of(queries));
  const torch::stable::accelerator::DeviceGuard guard(queries.get_device_index());
  Inputs inputs(op, queries, query_offsets, max_queries,
                question_memory(question_keys, question_ids, question_offsets, max_question),
                paragraph_memory(paragraph_keys, paragraph_ids, paragraph_offsets, max_paragraph),
                gate_logits, scale);
  check_vocabulary(op, queries, vocabulary_logits, extended_size, cuda_device_of(queries));
  Tensor log_probs = floats_like(queries, {inputs.rows(), extended_size});
  const cuda::CopyOfWords call{inputs.problem, vocabulary_logits.size(1), extended_size,
                               inputs.hold(vocabulary_logits).const_data_ptr(),
                               log_probs.mutable_data_ptr<float>()};
  check_started(op, vleff_copy_attention_rows_cuda(&call, current_stream(queries)));
  return log_probs;
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("copy_attention", TORCH_BOX(&vleff::forward_cuda));
  library.impl("copy_attention_backward", TORCH_BOX(&vleff::backward_cuda));
  library.impl("copy_attention_rows", TORCH_BOX(&vleff::rows_cuda));
}

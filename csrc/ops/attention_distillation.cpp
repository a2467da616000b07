#include "../kernels/cpu/attention_distillation.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cpu/isa.h"
#include "attention_distillation_checks.h"
#include "parallel.h"

VLEFF_DISPATCH(AttentionDistillationKernels, attention_distillation_kernels)

namespace vleff {
namespace {

// Checked; holds the tensors that `problem` points into.
struct Inputs {
  AttentionDistillationProblem problem;
  Tensor q_offsets, k_offsets;
  int64_t longest_k;
};

Inputs checked_inputs(const char* op, const DistillationArguments& a) {
  check_distillation(op, a, DeviceType::CPU);
  Inputs inputs{{}, as_contiguous(a.q_offsets), as_contiguous(a.k_offsets), 0};
  AttentionDistillationProblem& problem = inputs.problem;
  problem.type = data_type(a.teacher_q);
  problem.batch = a.batch();
  problem.heads = a.heads();
  problem.total_q = a.total_q();
  problem.total_k = a.total_k();
  problem.teacher = distillation_side(a.teacher_q, a.teacher_k, a.teacher_scale);
  problem.student = distillation_side(a.student_q, a.student_k, a.student_scale);
  problem.q_offsets = inputs.q_offsets.const_data_ptr<int32_t>();
  problem.k_offsets = inputs.k_offsets.const_data_ptr<int32_t>();
  check_offsets(op, "q_offsets", problem.q_offsets, problem.batch, problem.total_q, "max_q", a.max_q);
  inputs.longest_k =
      check_offsets(op, "k_offsets", problem.k_offsets, problem.batch, problem.total_k, "max_k", a.max_k);
  return inputs;
}

std::tuple<Tensor, Tensor> forward(Tensor teacher_q, Tensor teacher_k, Tensor student_q, Tensor student_k,
                                   Tensor q_offsets, Tensor k_offsets, int64_t max_q, int64_t max_k,
                                   double teacher_scale, double student_scale) {
  const Inputs inputs =
      checked_inputs("attention_distillation", {teacher_q, teacher_k, student_q, student_k, q_offsets,
                                                k_offsets, max_q, max_k, teacher_scale, student_scale});
  const AttentionDistillationProblem& problem = inputs.problem;
  Tensor divergence = torch::stable::empty({problem.total_q, problem.heads}, ScalarType::Float);
  Tensor statistics = torch::stable::empty({problem.total_q, problem.heads, 4}, ScalarType::Float);
  const AttentionDistillationKernels& kernels = active_attention_distillation_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.forward_scratch_bytes(problem, inputs.longest_k));
  kernels.forward(problem,
                  {divergence.mutable_data_ptr<float>(),
                   reinterpret_cast<SoftmaxStatistics*>(statistics.mutable_data_ptr<float>())},
                  inputs.longest_k, scratch.data(), parallel);
  return {divergence, statistics};
}

std::tuple<Tensor, Tensor> backward(Tensor grad_divergence, Tensor teacher_q, Tensor teacher_k,
                                    Tensor student_q, Tensor student_k, Tensor statistics, Tensor q_offsets,
                                    Tensor k_offsets, int64_t max_q, int64_t max_k, double teacher_scale,
                                    double student_scale) {
  const char* op = "attention_distillation_backward";
  const DistillationArguments arguments{teacher_q, teacher_k, student_q, student_k,     q_offsets,
                                        k_offsets, max_q,     max_k,     teacher_scale, student_scale};
  const Inputs inputs = checked_inputs(op, arguments);
  const AttentionDistillationProblem& problem = inputs.problem;
  check_distillation_gradient(op, arguments, grad_divergence, statistics, DeviceType::CPU);
  grad_divergence = as_contiguous(grad_divergence);
  statistics = as_contiguous(statistics);

  const ScalarType type = student_q.scalar_type();
  const int64_t head_dim = problem.student.head_dim;
  Tensor grad_q = torch::stable::empty({problem.total_q, problem.heads, head_dim}, type);
  Tensor grad_k = torch::stable::empty({problem.total_k, problem.heads, head_dim}, type);
  const AttentionDistillationKernels& kernels = active_attention_distillation_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.backward_scratch_bytes(problem, inputs.longest_k));
  kernels.backward(problem,
                   {grad_divergence.const_data_ptr<float>(),
                    reinterpret_cast<const SoftmaxStatistics*>(statistics.const_data_ptr<float>()),
                    grad_q.mutable_data_ptr(), grad_k.mutable_data_ptr()},
                   inputs.longest_k, scratch.data(), parallel);
  return {grad_q, grad_k};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("attention_distillation", TORCH_BOX(&vleff::forward));
  library.impl("attention_distillation_backward", TORCH_BOX(&vleff::backward));
}

#include "../kernels/cpu/attention_distillation.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cpu/isa.h"
#include "parallel.h"
#include "token_gather_attention_checks.h"

VLEFF_DISPATCH(AttentionDistillationKernels, attention_distillation_kernels)

namespace vleff {
namespace {

// Arguments that forward and backward share.
struct Arguments {
  const Tensor &teacher_q, &teacher_k, &student_q, &student_k, &q_offsets, &k_offsets;
  int64_t max_q, max_k;
  double teacher_scale, student_scale;
};

// Checked; holds the tensors that `problem` points into.
struct Inputs {
  AttentionDistillationProblem problem;
  Tensor q_offsets, k_offsets;
  int64_t longest_k;
};

void check_operands(const char* op, const Arguments& a) {
  const Device device = DeviceType::CPU;
  check_rows(op, "teacher_q", a.teacher_q, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
             {any_size, any_size, any_size}, "[total_q, heads, teacher_dim]", device);
  const ScalarType type = a.teacher_q.scalar_type();
  const int64_t total_q = a.teacher_q.size(0), heads = a.teacher_q.size(1), dim = a.teacher_q.size(2);
  if (heads < 1) reject(op, "teacher_q", "at least one head", describe(a.teacher_q));
  const auto check_dim = [&](const char* argument, const Tensor& tensor) {
    if (tensor.size(2) < 1 || tensor.size(2) > 256) {
      reject(op, argument, "a head_dim in [1, 256]", text(tensor.size(2)));
    }
  };
  check_dim("teacher_q", a.teacher_q);
  check_rows(op, "teacher_k", a.teacher_k, {type}, {any_size, heads, dim}, "[total_k, heads, teacher_dim]",
             device);
  check_rows(op, "student_q", a.student_q, {type}, {total_q, heads, any_size},
             "[total_q, heads, student_dim]", device);
  check_dim("student_q", a.student_q);
  check_rows(op, "student_k", a.student_k, {type}, {a.teacher_k.size(0), heads, a.student_q.size(2)},
             "[total_k, heads, student_dim]", device);
  check_side(op, "q_offsets", a.q_offsets, "", std::nullopt, "max_q", a.max_q, device);
  check_side(op, "k_offsets", a.k_offsets, "", std::nullopt, "max_k", a.max_k, device);
  if (a.k_offsets.numel() != a.q_offsets.numel()) {
    reject(op, "k_offsets", text("as many offsets as q_offsets, ", a.q_offsets.numel()),
           text(a.k_offsets.numel()));
  }
  check_scale(op, "teacher_scale", a.teacher_scale);
  check_scale(op, "student_scale", a.student_scale);
}

Inputs checked_inputs(const char* op, const Arguments& a) {
  check_operands(op, a);
  Inputs inputs{{}, as_contiguous(a.q_offsets), as_contiguous(a.k_offsets), 0};
  AttentionDistillationProblem& problem = inputs.problem;
  problem.type = data_type(a.teacher_q);
  problem.batch = a.q_offsets.numel() - 1;
  problem.heads = a.teacher_q.size(1);
  problem.total_q = a.teacher_q.size(0);
  problem.total_k = a.teacher_k.size(0);
  problem.teacher = {head_rows(a.teacher_q), head_rows(a.teacher_k), a.teacher_q.size(2),
                     static_cast<float>(a.teacher_scale)};
  problem.student = {head_rows(a.student_q), head_rows(a.student_k), a.student_q.size(2),
                     static_cast<float>(a.student_scale)};
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
  const Inputs inputs = checked_inputs(op, {teacher_q, teacher_k, student_q, student_k, q_offsets, k_offsets,
                                            max_q, max_k, teacher_scale, student_scale});
  const AttentionDistillationProblem& problem = inputs.problem;
  check_tensor(op, "grad_divergence", grad_divergence, {ScalarType::Float}, {problem.total_q, problem.heads},
               "[total_q, heads]");
  check_tensor(op, "statistics", statistics, {ScalarType::Float}, {problem.total_q, problem.heads, 4},
               "[total_q, heads, 4]");
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

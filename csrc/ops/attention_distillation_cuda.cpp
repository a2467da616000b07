#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cuda/attention_distillation_problem.h"
#include "attention_distillation_checks.h"
#include "cuda_stream.h"

namespace vleff {
namespace {

// Only shapes are checked: reading the values would wait for the device. The kernels clamp them. The offsets
// are contiguous.
cuda::DistillationProblem problem_of(const DistillationArguments& a) {
  cuda::DistillationProblem problem{};
  problem.type = data_type(a.teacher_q);
  problem.batch = a.batch();
  problem.heads = a.heads();
  problem.teacher = distillation_side(a.teacher_q, a.teacher_k, a.teacher_scale);
  problem.student = distillation_side(a.student_q, a.student_k, a.student_scale);
  problem.queries = {a.q_offsets.const_data_ptr<int32_t>(), {}, a.total_q(), a.total_q(), a.max_q};
  problem.keys = {a.k_offsets.const_data_ptr<int32_t>(), {}, a.total_k(), a.total_k(), a.max_k};
  return problem;
}

std::tuple<Tensor, Tensor> forward_cuda(Tensor teacher_q, Tensor teacher_k, Tensor student_q,
                                        Tensor student_k, Tensor q_offsets, Tensor k_offsets, int64_t max_q,
                                        int64_t max_k, double teacher_scale, double student_scale) {
  const char* op = "attention_distillation";
  const DistillationArguments arguments{teacher_q, teacher_k, student_q, student_k,     q_offsets,
                                        k_offsets, max_q,     max_k,     teacher_scale, student_scale};
  check_distillation(op, arguments, cuda_device_of(teacher_q));
  const torch::stable::accelerator::DeviceGuard guard(teacher_q.get_device_index());
  q_offsets = as_contiguous(q_offsets);
  k_offsets = as_contiguous(k_offsets);
  const int64_t total_q = arguments.total_q(), heads = arguments.heads();
  Tensor divergence = torch::stable::new_empty(teacher_q, {total_q, heads}, ScalarType::Float);
  Tensor statistics = torch::stable::new_empty(teacher_q, {total_q, heads, 4}, ScalarType::Float);
  cuda::DistillationProblem problem = problem_of(arguments);
  problem.divergence = divergence.mutable_data_ptr<float>();
  problem.statistics = statistics.mutable_data_ptr<float>();
  check_started(op, vleff_attention_distillation_cuda(&problem, current_stream(teacher_q)));
  return {divergence, statistics};
}

std::tuple<Tensor, Tensor> backward_cuda(Tensor grad_divergence, Tensor teacher_q, Tensor teacher_k,
                                         Tensor student_q, Tensor student_k, Tensor statistics,
                                         Tensor q_offsets, Tensor k_offsets, int64_t max_q, int64_t max_k,
                                         double teacher_scale, double student_scale) {
  const char* op = "attention_distillation_backward";
  const DistillationArguments arguments{teacher_q, teacher_k, student_q, student_k,     q_offsets,
                                        k_offsets, max_q,     max_k,     teacher_scale, student_scale};
  const Device device = cuda_device_of(teacher_q);
  check_distillation(op, arguments, device);
  check_distillation_gradient(op, arguments, grad_divergence, statistics, device);
  const torch::stable::accelerator::DeviceGuard guard(teacher_q.get_device_index());
  q_offsets = as_contiguous(q_offsets);
  k_offsets = as_contiguous(k_offsets);
  grad_divergence = as_contiguous(grad_divergence);
  statistics = as_contiguous(statistics);
  const int64_t heads = arguments.heads(), head_dim = student_q.size(2);
  Tensor grad_q = torch::stable::new_empty(student_q, {arguments.total_q(), heads, head_dim});
  Tensor grad_k = torch::stable::new_empty(student_k, {arguments.total_k(), heads, head_dim});
  cuda::DistillationGradient gradient{};
  gradient.problem = problem_of(arguments);
  gradient.problem.statistics = const_cast<float*>(statistics.const_data_ptr<float>());  // only read
  gradient.grad_divergence = grad_divergence.const_data_ptr<float>();
  gradient.grad_q = grad_q.mutable_data_ptr();
  gradient.grad_k = grad_k.mutable_data_ptr();
  check_started(op, vleff_attention_distillation_backward_cuda(&gradient, current_stream(teacher_q)));
  return {grad_q, grad_k};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("attention_distillation", TORCH_BOX(&vleff::forward_cuda));
  library.impl("attention_distillation_backward", TORCH_BOX(&vleff::backward_cuda));
}

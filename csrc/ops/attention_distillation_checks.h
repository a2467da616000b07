#pragma once
#include "token_gather_attention_checks.h"

// What attention_distillation checks on every device: all but the values in tensors.
namespace vleff {

// Arguments that forward and backward share.
struct DistillationArguments {
  const Tensor &teacher_q, &teacher_k, &student_q, &student_k, &q_offsets, &k_offsets;
  int64_t max_q, max_k;
  double teacher_scale, student_scale;

  int64_t batch() const { return q_offsets.numel() - 1; }
  int64_t heads() const { return teacher_q.size(1); }
  int64_t total_q() const { return teacher_q.size(0); }
  int64_t total_k() const { return teacher_k.size(0); }
};

inline void check_distillation(const char* op, const DistillationArguments& a, const Device& device) {
  check_rows(op, "teacher_q", a.teacher_q, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
             {any_size, any_size, any_size}, "[total_q, heads, teacher_dim]", device);
  const ScalarType type = a.teacher_q.scalar_type();
  const int64_t heads = a.heads(), dim = a.teacher_q.size(2);
  if (heads < 1) reject(op, "teacher_q", "at least one head", describe(a.teacher_q));
  const auto check_dim = [&](const char* argument, const Tensor& tensor) {
    if (tensor.size(2) < 1 || tensor.size(2) > 256) {
      reject(op, argument, "a head_dim in [1, 256]", text(tensor.size(2)));
    }
  };
  check_dim("teacher_q", a.teacher_q);
  check_rows(op, "teacher_k", a.teacher_k, {type}, {any_size, heads, dim}, "[total_k, heads, teacher_dim]",
             device);
  check_rows(op, "student_q", a.student_q, {type}, {a.total_q(), heads, any_size},
             "[total_q, heads, student_dim]", device);
  check_dim("student_q", a.student_q);
  check_rows(op, "student_k", a.student_k, {type}, {a.total_k(), heads, a.student_q.size(2)},
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

inline void check_distillation_gradient(const char* op, const DistillationArguments& a,
                                        const Tensor& grad_divergence, const Tensor& statistics,
                                        const Device& device) {
  check_tensor(op, "grad_divergence", grad_divergence, {ScalarType::Float}, {a.total_q(), a.heads()},
               "[total_q, heads]", device);
  check_tensor(op, "statistics", statistics, {ScalarType::Float}, {a.total_q(), a.heads(), 4},
               "[total_q, heads, 4]", device);
}

inline DistillationSide distillation_side(const Tensor& q, const Tensor& k, double scale) {
  return {head_rows(q), head_rows(k), q.size(2), static_cast<float>(scale)};
}

}  // namespace vleff

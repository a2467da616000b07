#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cuda/token_gather_attention_problem.h"
#include "cuda_arguments.h"
#include "sum_rows_cuda.h"
#include "token_gather_attention_checks.h"

namespace vleff {
namespace {

using torch::stable::accelerator::DeviceGuard;

// The checked arguments that forward and backward share; holds the tensors that `problem` points into.
struct Inputs {
  Tensor q_offsets, k_offsets;
  OptionalTensor q_index, k_index, head_mask, key_bias;
  cuda::AttentionProblem problem{};

  Inputs(const char* op, const AttentionArguments& a)
      : q_offsets(a.q_offsets),
        k_offsets(a.k_offsets),
        q_index(a.q_index),
        k_index(a.k_index),
        head_mask(a.head_mask),
        key_bias(a.key_bias) {
    check_attention(op, a, cuda_device_of(a.q));
    q_offsets = as_contiguous(q_offsets);
    k_offsets = as_contiguous(k_offsets);
    q_index = as_contiguous(q_index);
    k_index = as_contiguous(k_index);
    head_mask = as_contiguous(head_mask);
    key_bias = as_contiguous(key_bias);
    problem.type = data_type(a.q);
    problem.batch = a.batch();
    problem.heads = a.heads();
    problem.head_dim = a.head_dim();
    problem.q = head_rows(a.q);
    problem.k = head_rows(a.k);
    problem.v = head_rows(a.v);
    problem.queries = {q_offsets.const_data_ptr<int32_t>(), row_index(q_index), a.q.size(0), a.total_q(),
                       a.max_q};
    problem.keys = {k_offsets.const_data_ptr<int32_t>(), row_index(k_index), a.k.size(0), a.total_k(),
                    a.max_k};
    problem.head_mask = static_cast<const uint8_t*>(data_or_null(head_mask));
    problem.key_bias = static_cast<const float*>(data_or_null(key_bias));
    problem.scale = static_cast<float>(a.scale);
    problem.causal = a.causal;
    problem.dropout_p = static_cast<float>(a.dropout_p);
    problem.seed = a.seed ? a.seed->const_data_ptr<int64_t>() : nullptr;
  }
};

std::tuple<Tensor, Tensor, Tensor> forward_cuda(Tensor q, Tensor k, Tensor v, Tensor q_offsets,
                                                Tensor k_offsets, int64_t max_q, int64_t max_k,
                                                OptionalTensor q_index, OptionalTensor k_index,
                                                OptionalTensor head_mask, OptionalTensor key_bias,
                                                OptionalTensor seed, double scale, bool causal,
                                                double dropout_p, bool with_importance) {
  constexpr const char* op = "token_gather_attention";
  const DeviceGuard guard(q.get_device_index());
  const AttentionArguments arguments{q,        k,     v,       q_offsets, k_offsets,
                                     max_q,    max_k, q_index, k_index,   head_mask,
                                     key_bias, scale, causal,  dropout_p, seed};
  Inputs inputs(op, arguments);
  cuda::AttentionProblem& problem = inputs.problem;
  const int64_t total_q = problem.queries.total, total_k = problem.keys.total, heads = problem.heads;
  Tensor out = torch::stable::new_empty(q, {total_q, heads, problem.head_dim});
  Tensor lse = torch::stable::new_empty(q, {total_q, heads}, ScalarType::Float);
  Tensor importance = with_importance ? torch::stable::new_empty(q, {total_k, heads}, ScalarType::Float)
                                      : torch::stable::new_empty(q, {0}, ScalarType::Float);
  problem.out = out.mutable_data_ptr();
  problem.lse = lse.mutable_data_ptr<float>();
  problem.importance = with_importance ? importance.mutable_data_ptr<float>() : nullptr;
  check_started(op, vleff_token_gather_attention_cuda(&problem, current_stream(q)));
  return {out, lse, importance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cuda(
    Tensor grad_out, OptionalTensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
    Tensor q_offsets, Tensor k_offsets, int64_t max_q, int64_t max_k, OptionalTensor q_index,
    OptionalTensor k_index, OptionalTensor head_mask, OptionalTensor key_bias, OptionalTensor seed,
    double scale, bool causal, double dropout_p, bool with_key_bias_grad) {
  constexpr const char* op = "token_gather_attention_backward";
  const Device device = cuda_device_of(q);
  const DeviceGuard guard(q.get_device_index());
  const AttentionArguments arguments{q,        k,     v,       q_offsets, k_offsets,
                                     max_q,    max_k, q_index, k_index,   head_mask,
                                     key_bias, scale, causal,  dropout_p, seed};
  const Inputs inputs(op, arguments);
  cuda::AttentionGradientProblem gradient{};
  gradient.attention = inputs.problem;
  cuda::AttentionProblem& problem = gradient.attention;
  const int64_t total_q = problem.queries.total, total_k = problem.keys.total, heads = problem.heads,
                head_dim = problem.head_dim;
  const ScalarType type = q.scalar_type();
  const char* shape = "[total_q, heads, head_dim]";
  check_tensor(op, "grad_out", grad_out, {type}, {total_q, heads, head_dim}, shape, device);
  check_tensor(op, "out", out, {type}, {total_q, heads, head_dim}, shape, device);
  check_tensor(op, "lse", lse, {ScalarType::Float}, {total_q, heads}, "[total_q, heads]", device);
  if (grad_lse) {
    check_tensor(op, "grad_lse", *grad_lse, {ScalarType::Float}, {total_q, heads}, "[total_q, heads]",
                 device);
    grad_lse = as_contiguous(*grad_lse);
  }
  grad_out = as_contiguous(grad_out);
  out = as_contiguous(out);
  lse = as_contiguous(lse);

  // Gradients of gathered rows are summed in float32 first.
  const ScalarType type_q = inputs.q_index ? ScalarType::Float : type;
  const ScalarType type_k = inputs.k_index ? ScalarType::Float : type;
  Tensor grad_q = torch::stable::new_empty(q, {total_q, heads, head_dim}, type_q);
  Tensor grad_k = torch::stable::new_empty(q, {total_k, heads, head_dim}, type_k);
  Tensor grad_v = torch::stable::new_empty(q, {total_k, heads, head_dim}, type_k);
  const int64_t biased_keys = with_key_bias_grad ? total_k : 0;
  Tensor grad_key_bias = torch::stable::new_empty(q, {biased_keys}, ScalarType::Float);
  const Tensor delta = torch::stable::new_empty(q, {total_q, heads}, ScalarType::Float);
  const Tensor head_key_biases = torch::stable::new_empty(q, {heads, biased_keys}, ScalarType::Float);
  problem.out = const_cast<void*>(out.const_data_ptr());
  problem.lse = const_cast<float*>(lse.const_data_ptr<float>());
  gradient.grad_out = grad_out.const_data_ptr();
  gradient.grad_lse = static_cast<const float*>(data_or_null(grad_lse));
  gradient.float32_queries = type_q == ScalarType::Float;
  gradient.float32_keys = type_k == ScalarType::Float;
  gradient.grad_q = grad_q.mutable_data_ptr();
  gradient.grad_k = grad_k.mutable_data_ptr();
  gradient.grad_v = grad_v.mutable_data_ptr();
  gradient.grad_key_bias = with_key_bias_grad ? grad_key_bias.mutable_data_ptr<float>() : nullptr;
  gradient.delta = delta.mutable_data_ptr<float>();
  gradient.head_key_biases = head_key_biases.mutable_data_ptr<float>();
  check_started(op, vleff_token_gather_attention_backward_cuda(&gradient, current_stream(q)));

  if (inputs.q_index) grad_q = sum_rows_on_cuda(op, grad_q, *inputs.q_index, q.size(0), type);
  if (inputs.k_index) {
    grad_k = sum_rows_on_cuda(op, grad_k, *inputs.k_index, k.size(0), type);
    grad_v = sum_rows_on_cuda(op, grad_v, *inputs.k_index, k.size(0), type);
  }
  return {grad_q, grad_k, grad_v, grad_key_bias};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("token_gather_attention", TORCH_BOX(&vleff::forward_cuda));
  library.impl("token_gather_attention_backward", TORCH_BOX(&vleff::backward_cuda));
}

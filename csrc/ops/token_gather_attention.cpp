#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../kernels/cpu/isa.h"
#include "checked_index.h"
#include "parallel.h"
#include "sum_rows.h"
#include "token_gather_attention_checks.h"

VLEFF_DISPATCH(TokenGatherAttentionKernels, token_gather_attention_kernels)

namespace vleff {
namespace {

// One side of the attention: queries, or keys with values.
struct Rows {
  Tensor offsets;        // int32 [batch + 1]
  OptionalTensor index;  // int32 [total]
  int64_t stored;        // rows of the tensor
  int64_t total;         // rows of the batch
  int64_t longest;       // sample

  const int32_t* index_data() const { return index ? index->const_data_ptr<int32_t>() : nullptr; }
};

// All checked arguments that forward and backward share; holds the tensors that `problem` points into.
struct Inputs {
  AttentionProblem problem;
  Rows queries, keys;
  OptionalTensor head_mask, key_bias;
};

Rows checked_rows(const char* op, const Tensor& stored, const char* offsets_argument, const Tensor& offsets,
                  const char* index_argument, const OptionalTensor& index, const char* max_argument,
                  int64_t max_length) {
  Rows rows{as_contiguous(offsets), checked_index(op, index_argument, index, stored.size(0)), stored.size(0),
            0, 0};
  rows.total = rows.index ? rows.index->numel() : rows.stored;
  rows.longest = check_offsets(op, offsets_argument, rows.offsets.const_data_ptr<int32_t>(),
                               offsets.numel() - 1, rows.total, max_argument, max_length);
  return rows;
}

Inputs checked_inputs(const char* op, const AttentionArguments& a) {
  check_attention(op, a, DeviceType::CPU);
  Inputs inputs{};
  inputs.queries = checked_rows(op, a.q, "q_offsets", a.q_offsets, "q_index", a.q_index, "max_q", a.max_q);
  inputs.keys = checked_rows(op, a.k, "k_offsets", a.k_offsets, "k_index", a.k_index, "max_k", a.max_k);
  inputs.head_mask = as_contiguous(a.head_mask);
  inputs.key_bias = as_contiguous(a.key_bias);
  if (a.key_bias) {
    check_key_bias(op, "key_bias", inputs.key_bias->const_data_ptr<float>(), inputs.keys.total);
  }

  AttentionProblem& problem = inputs.problem;
  problem.type = data_type(a.q);
  problem.batch = a.batch();
  problem.heads = a.heads();
  problem.head_dim = a.head_dim();
  problem.total_q = inputs.queries.total;
  problem.total_k = inputs.keys.total;
  problem.q = head_rows(a.q);
  problem.k = head_rows(a.k);
  problem.v = head_rows(a.v);
  problem.q_offsets = inputs.queries.offsets.const_data_ptr<int32_t>();
  problem.k_offsets = inputs.keys.offsets.const_data_ptr<int32_t>();
  problem.q_index = inputs.queries.index_data();
  problem.k_index = inputs.keys.index_data();
  problem.head_mask =
      inputs.head_mask ? static_cast<const uint8_t*>(inputs.head_mask->const_data_ptr()) : nullptr;
  problem.key_bias = inputs.key_bias ? inputs.key_bias->const_data_ptr<float>() : nullptr;
  problem.scale = static_cast<float>(a.scale);
  problem.causal = a.causal;
  problem.dropout_p = static_cast<float>(a.dropout_p);
  problem.seed = a.seed ? static_cast<uint64_t>(*a.seed->const_data_ptr<int64_t>()) : 0;
  return inputs;
}

Tensor empty(std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::empty(shape, type);
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, Tensor q_offsets, Tensor k_offsets,
                                           int64_t max_q, int64_t max_k, OptionalTensor q_index,
                                           OptionalTensor k_index, OptionalTensor head_mask,
                                           OptionalTensor key_bias, OptionalTensor seed, double scale,
                                           bool causal, double dropout_p, bool with_importance) {
  const Inputs inputs =
      checked_inputs("token_gather_attention", {q, k, v, q_offsets, k_offsets, max_q, max_k, q_index, k_index,
                                                head_mask, key_bias, scale, causal, dropout_p, seed});
  const AttentionProblem& problem = inputs.problem;
  const int64_t longest_q = inputs.queries.longest, longest_k = inputs.keys.longest;

  Tensor out = empty({problem.total_q, problem.heads, problem.head_dim}, q.scalar_type());
  Tensor lse = empty({problem.total_q, problem.heads}, ScalarType::Float);
  Tensor importance = with_importance ? empty({problem.total_k, problem.heads}, ScalarType::Float)
                                      : empty({0}, ScalarType::Float);

  const TokenGatherAttentionKernels& kernels = active_token_gather_attention_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.forward_scratch_bytes(problem, longest_q, longest_k));
  const AttentionOutput output{out.mutable_data_ptr(), lse.mutable_data_ptr<float>(),
                               with_importance ? importance.mutable_data_ptr<float>() : nullptr};
  kernels.forward(problem, output, longest_q, longest_k, scratch.data(), parallel);
  return {out, lse, importance};
}

// From a gradient per row of the batch to one per stored row. Rows named several times are summed.
Tensor scattered(const Tensor& gradient, const Rows& rows, ScalarType type) {
  if (rows.index) return sum_rows(gradient, rows.index_data(), rows.stored, type);
  return gradient.scalar_type() == type ? gradient : torch::stable::to(gradient, type);
}

// [heads, total_k] -> [total_k]
Tensor summed_over_heads(const Tensor& per_head) {
  const int64_t heads = per_head.size(0), keys = per_head.size(1);
  Tensor sums = torch::stable::new_zeros(per_head, {keys});
  const float* source = per_head.const_data_ptr<float>();
  float* target = sums.mutable_data_ptr<float>();
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t key = 0; key < keys; ++key) target[key] += source[head * keys + key];
  }
  return sums;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
    Tensor q_offsets, Tensor k_offsets, int64_t max_q, int64_t max_k, OptionalTensor q_index,
    OptionalTensor k_index, OptionalTensor head_mask, OptionalTensor key_bias, OptionalTensor seed,
    double scale, bool causal, double dropout_p, bool with_key_bias_grad) {
  const char* op = "token_gather_attention_backward";
  const Inputs inputs = checked_inputs(op, {q, k, v, q_offsets, k_offsets, max_q, max_k, q_index, k_index,
                                            head_mask, key_bias, scale, causal, dropout_p, seed});
  const AttentionProblem& problem = inputs.problem;
  const int64_t total_q = problem.total_q, total_k = problem.total_k, heads = problem.heads,
                head_dim = problem.head_dim;
  const int64_t longest_q = inputs.queries.longest, longest_k = inputs.keys.longest;
  const ScalarType type = q.scalar_type();
  check_tensor(op, "grad_out", grad_out, {type}, {total_q, heads, head_dim}, "[total_q, heads, head_dim]");
  check_tensor(op, "out", out, {type}, {total_q, heads, head_dim}, "[total_q, heads, head_dim]");
  check_tensor(op, "lse", lse, {ScalarType::Float}, {total_q, heads}, "[total_q, heads]");
  if (grad_lse) {
    check_tensor(op, "grad_lse", *grad_lse, {ScalarType::Float}, {total_q, heads}, "[total_q, heads]");
    grad_lse = as_contiguous(*grad_lse);
  }
  grad_out = as_contiguous(grad_out);
  out = as_contiguous(out);
  lse = as_contiguous(lse);

  const bool gathered = inputs.queries.index || inputs.keys.index;
  const ScalarType grad_type = gathered ? ScalarType::Float : type;
  Tensor grad_q = empty({total_q, heads, head_dim}, grad_type);
  Tensor grad_k = empty({total_k, heads, head_dim}, grad_type);
  Tensor grad_v = empty({total_k, heads, head_dim}, grad_type);
  Tensor grad_key_bias =
      with_key_bias_grad ? empty({heads, total_k}, ScalarType::Float) : empty({0}, ScalarType::Float);

  const TokenGatherAttentionKernels& kernels = active_token_gather_attention_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(parallel.threads * kernels.backward_scratch_bytes(problem, longest_q, longest_k));
  const AttentionGradient gradient{grad_out.const_data_ptr(),
                                   grad_lse ? grad_lse->const_data_ptr<float>() : nullptr,
                                   out.const_data_ptr(),
                                   lse.const_data_ptr<float>(),
                                   gathered ? DataType::float32 : problem.type,
                                   grad_q.mutable_data_ptr(),
                                   grad_k.mutable_data_ptr(),
                                   grad_v.mutable_data_ptr(),
                                   with_key_bias_grad ? grad_key_bias.mutable_data_ptr<float>() : nullptr};
  kernels.backward(problem, gradient, longest_q, longest_k, scratch.data(), parallel);
  return {scattered(grad_q, inputs.queries, type), scattered(grad_k, inputs.keys, type),
          scattered(grad_v, inputs.keys, type),
          with_key_bias_grad ? summed_over_heads(grad_key_bias) : grad_key_bias};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("token_gather_attention", TORCH_BOX(&vleff::forward));
  library.impl("token_gather_attention_backward", TORCH_BOX(&vleff::backward));
}

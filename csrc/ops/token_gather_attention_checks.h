#pragma once
#include "../kernels/cpu/token_gather_attention.h"
#include "checks.h"

// What token_gather_attention checks on every device: all but the values in tensors.
namespace vleff {

// Arguments that forward and backward share.
struct AttentionArguments {
  const Tensor &q, &k, &v, &q_offsets, &k_offsets;
  int64_t max_q, max_k;
  const OptionalTensor &q_index, &k_index, &head_mask, &key_bias;
  double scale;
  bool causal;
  double dropout_p;
  const OptionalTensor& seed;

  int64_t batch() const { return q_offsets.numel() - 1; }
  int64_t heads() const { return q.size(1); }
  int64_t head_dim() const { return q.size(2); }
  int64_t total_q() const { return q_index ? q_index->numel() : q.size(0); }
  int64_t total_k() const { return k_index ? k_index->numel() : k.size(0); }
};

inline void check_rows(const char* op, const char* argument, const Tensor& tensor,
                       std::initializer_list<ScalarType> types, std::initializer_list<int64_t> shape,
                       const char* shape_text, const Device& device) {
  check_tensor(op, argument, tensor, types, shape, shape_text, device);
  if (tensor.size(0) > INT32_MAX) reject(op, argument, "at most 2^31 - 1 rows", describe(tensor));
  if (tensor.size(2) > 1 && tensor.stride(2) != 1) {
    reject(op, argument, "a contiguous last dimension", text("stride ", tensor.stride(2)));
  }
}

inline void check_side(const char* op, const char* offsets_argument, const Tensor& offsets,
                       const char* index_argument, const OptionalTensor& index, const char* max_argument,
                       int64_t max_length, const Device& device) {
  check_tensor(op, offsets_argument, offsets, {ScalarType::Int}, {any_size}, "[batch + 1]", device);
  if (offsets.numel() == 0) reject(op, offsets_argument, "at least one offset", describe(offsets));
  if (max_length < 0) reject(op, max_argument, "a length of at least 0", text(max_length));
  if (!index) return;
  check_tensor(op, index_argument, *index, {ScalarType::Int, ScalarType::Long}, {any_size}, "[total]",
               device);
  if (index->numel() > INT32_MAX) {
    reject(op, index_argument, "at most 2^31 - 1 row numbers", describe(*index));
  }
}

inline void check_attention(const char* op, const AttentionArguments& a, const Device& device) {
  check_rows(op, "q", a.q, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half},
             {any_size, any_size, any_size}, "[rows_q, heads, head_dim]", device);
  const ScalarType type = a.q.scalar_type();
  if (a.heads() < 1) reject(op, "q", "at least one head", describe(a.q));
  if (a.head_dim() < 1 || a.head_dim() > 256) reject(op, "q", "a head_dim in [1, 256]", text(a.head_dim()));
  check_rows(op, "k", a.k, {type}, {any_size, a.heads(), a.head_dim()}, "[rows_k, heads, head_dim]", device);
  check_rows(op, "v", a.v, {type}, {a.k.size(0), a.heads(), a.head_dim()}, "[rows_k, heads, head_dim]",
             device);
  check_side(op, "q_offsets", a.q_offsets, "q_index", a.q_index, "max_q", a.max_q, device);
  check_side(op, "k_offsets", a.k_offsets, "k_index", a.k_index, "max_k", a.max_k, device);
  if (a.k_offsets.numel() != a.q_offsets.numel()) {
    reject(op, "k_offsets", text("as many offsets as q_offsets, ", a.q_offsets.numel()),
           text(a.k_offsets.numel()));
  }
  if (a.head_mask) {
    check_tensor(op, "head_mask", *a.head_mask, {ScalarType::Bool}, {a.batch(), a.heads()}, "[batch, heads]",
                 device);
  }
  if (a.key_bias) {
    check_tensor(op, "key_bias", *a.key_bias, {ScalarType::Float}, {a.total_k()}, "[total_k]", device);
  }
  check_scale(op, "scale", a.scale);
  check_dropout(op, a.dropout_p);
  if (!a.seed && a.dropout_p > 0) {
    reject(op, "seed", "an int64 tensor with one element, as dropout_p > 0", "None");
  }
  if (a.seed &&
      (!is_on(*a.seed, device) || a.seed->scalar_type() != ScalarType::Long || a.seed->numel() != 1)) {
    reject(op, "seed", "int64 with one element on " + name_of(device), describe(*a.seed));
  }
}

inline HeadRows head_rows(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

}  // namespace vleff

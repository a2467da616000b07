#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cuda/token_gather_attention_problem.h"
#include "token_gather_attention_checks.h"

namespace vleff {
namespace {

cuda::RowIndex row_index(const OptionalTensor& index) {
  if (!index) return {nullptr, false};
  return {index->const_data_ptr(), index->scalar_type() == ScalarType::Long};
}

// Only shapes are checked: reading the values would wait for the device. The kernels clamp them.
std::tuple<Tensor, Tensor, Tensor> forward_cuda(Tensor q, Tensor k, Tensor v, Tensor q_offsets,
                                                Tensor k_offsets, int64_t max_q, int64_t max_k,
                                                OptionalTensor q_index, OptionalTensor k_index,
                                                OptionalTensor head_mask, OptionalTensor key_bias,
                                                OptionalTensor seed, double scale, bool causal,
                                                double dropout_p, bool with_importance) {
  const char* op = "token_gather_attention";
  const AttentionArguments arguments{q,        k,     v,       q_offsets, k_offsets,
                                     max_q,    max_k, q_index, k_index,   head_mask,
                                     key_bias, scale, causal,  dropout_p, seed};
  check_attention(op, arguments, Device(DeviceType::CUDA, q.get_device_index()));
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());

  q_offsets = as_contiguous(q_offsets);
  k_offsets = as_contiguous(k_offsets);
  q_index = as_contiguous(q_index);
  k_index = as_contiguous(k_index);
  head_mask = as_contiguous(head_mask);
  key_bias = as_contiguous(key_bias);
  const int64_t total_q = arguments.total_q(), total_k = arguments.total_k(), heads = arguments.heads();
  Tensor out = torch::stable::new_empty(q, {total_q, heads, arguments.head_dim()});
  Tensor lse = torch::stable::new_empty(q, {total_q, heads}, ScalarType::Float);
  Tensor importance = with_importance ? torch::stable::new_empty(q, {total_k, heads}, ScalarType::Float)
                                      : torch::stable::new_empty(q, {0}, ScalarType::Float);

  cuda::AttentionProblem problem{};
  problem.type = data_type(q);
  problem.batch = arguments.batch();
  problem.heads = heads;
  problem.head_dim = arguments.head_dim();
  problem.q = head_rows(q);
  problem.k = head_rows(k);
  problem.v = head_rows(v);
  problem.queries = {q_offsets.const_data_ptr<int32_t>(), row_index(q_index), q.size(0), total_q, max_q};
  problem.keys = {k_offsets.const_data_ptr<int32_t>(), row_index(k_index), k.size(0), total_k, max_k};
  problem.head_mask = head_mask ? static_cast<const uint8_t*>(head_mask->const_data_ptr()) : nullptr;
  problem.key_bias = key_bias ? key_bias->const_data_ptr<float>() : nullptr;
  problem.scale = static_cast<float>(scale);
  problem.causal = causal;
  problem.dropout_p = static_cast<float>(dropout_p);
  problem.seed = seed ? seed->const_data_ptr<int64_t>() : nullptr;
  problem.out = out.mutable_data_ptr();
  problem.lse = lse.mutable_data_ptr<float>();
  problem.importance = with_importance ? importance.mutable_data_ptr<float>() : nullptr;

  void* stream = torch::stable::accelerator::getCurrentStream(q.get_device_index()).nativeHandle();
  const int error = vleff_token_gather_attention_cuda(&problem, stream);
  if (error) throw std::runtime_error(text(op, ": CUDA kernel not started: ", vleff_cuda_error_text(error)));
  return {out, lse, importance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cuda(Tensor, OptionalTensor, Tensor, Tensor, Tensor,
                                                         Tensor, Tensor, Tensor, Tensor, int64_t, int64_t,
                                                         OptionalTensor, OptionalTensor, OptionalTensor,
                                                         OptionalTensor, double, bool, double, OptionalTensor,
                                                         bool) {
  throw std::runtime_error(
      "token_gather_attention_backward: runs on CPU only in this version; CUDA has the forward pass only");
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("token_gather_attention", TORCH_BOX(&vleff::forward_cuda));
  library.impl("token_gather_attention_backward", TORCH_BOX(&vleff::backward_cuda));
}

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "../kernels/cuda/vocabulary_log_probs_problem.h"
#include "cuda_stream.h"
#include "vocabulary_checks.h"

namespace vleff {
namespace {

constexpr int64_t most_gradient_elements = int64_t{1} << 24;  // of a chunk's logits
constexpr int64_t most_chunk_words = 4096;

// Only shapes are checked: reading the targets would wait for the device. The operands are contiguous.
cuda::VocabularyLogProbs problem_of(const char* op, const Tensor& hidden, const Tensor& weight,
                                    const OptionalTensor& bias, const Tensor& targets) {
  if (hidden.size(0) > INT32_MAX) reject(op, "hidden", "at most 2^31 - 1 rows", describe(hidden));
  return {data_type(hidden),
          hidden.size(0),
          hidden.size(1),
          weight.size(0),
          hidden.const_data_ptr(),
          weight.const_data_ptr(),
          bias ? bias->const_data_ptr() : nullptr,
          {targets.const_data_ptr(), targets.scalar_type() == ScalarType::Long},
          nullptr};
}

void check_targets(const char* op, const Tensor& hidden, const Tensor& targets) {
  check_tensor(op, "targets", targets, {ScalarType::Int, ScalarType::Long}, {hidden.size(0)}, "[rows]",
               cuda_device_of(hidden));
}

std::tuple<Tensor, Tensor> forward_cuda(Tensor hidden, Tensor weight, OptionalTensor bias, Tensor targets) {
  const char* op = "vocabulary_log_probs";
  check_vocabulary_operands(op, hidden, weight, bias, cuda_device_of(hidden));
  check_targets(op, hidden, targets);
  const torch::stable::accelerator::DeviceGuard guard(hidden.get_device_index());
  hidden = as_contiguous(hidden);
  weight = as_contiguous(weight);
  bias = as_contiguous(bias);
  targets = as_contiguous(targets);
  const int64_t rows = hidden.size(0);
  const int64_t tiles = (weight.size(0) + cuda::vocabulary_tile_words - 1) / cuda::vocabulary_tile_words;
  const auto floats = [&](std::initializer_list<int64_t> shape) {
    return torch::stable::new_empty(hidden, shape, ScalarType::Float);
  };
  Tensor log_probs = floats({rows}), statistics = floats({rows, 2});
  Tensor partial = floats({rows, tiles, 2}), target_logits = floats({rows});
  cuda::VocabularyForward forward{problem_of(op, hidden, weight, bias, targets),
                                  partial.mutable_data_ptr<float>(), target_logits.mutable_data_ptr<float>(),
                                  log_probs.mutable_data_ptr<float>()};
  forward.problem.statistics = statistics.mutable_data_ptr<float>();
  check_started(op, vleff_vocabulary_log_probs_cuda(&forward, current_stream(hidden)));
  return {log_probs, statistics};
}

std::tuple<Tensor, Tensor, Tensor> backward_cuda(Tensor grad_log_probs, Tensor hidden, Tensor weight,
                                                 OptionalTensor bias, Tensor targets, Tensor statistics) {
  const char* op = "vocabulary_log_probs_backward";
  const Device device = cuda_device_of(hidden);
  check_vocabulary_operands(op, hidden, weight, bias, device);
  check_targets(op, hidden, targets);
  check_vocabulary_gradient(op, hidden, grad_log_probs, statistics, device);
  const torch::stable::accelerator::DeviceGuard guard(hidden.get_device_index());
  hidden = as_contiguous(hidden);
  weight = as_contiguous(weight);
  bias = as_contiguous(bias);
  targets = as_contiguous(targets);
  grad_log_probs = as_contiguous(grad_log_probs);
  statistics = as_contiguous(statistics);
  const int64_t rows = hidden.size(0), width = hidden.size(1), words = weight.size(0);
  const auto rounded_up = [](int64_t count) {
    return (count + cuda::vocabulary_tile_words - 1) / cuda::vocabulary_tile_words *
           cuda::vocabulary_tile_words;
  };
  const int64_t fitting = rounded_up(most_gradient_elements / std::max<int64_t>(rows, 1) + 1);
  const int64_t chunk = std::min({fitting, most_chunk_words, rounded_up(words)});
  const auto floats = [&](std::initializer_list<int64_t> shape) {
    return torch::stable::new_empty(hidden, shape, ScalarType::Float);
  };
  Tensor grad_hidden = torch::stable::new_empty(hidden, {rows, width});
  Tensor grad_weight = torch::stable::new_empty(weight, {words, width});
  Tensor grad_bias = torch::stable::new_empty(weight, {bias ? words : 0});
  Tensor logit_gradients = torch::stable::new_empty(hidden, {rows, chunk});
  Tensor factors = floats({rows}), partial = floats({rows, width});
  cuda::VocabularyBackward backward{problem_of(op, hidden, weight, bias, targets),
                                    grad_log_probs.const_data_ptr<float>(),
                                    chunk,
                                    logit_gradients.mutable_data_ptr(),
                                    factors.mutable_data_ptr<float>(),
                                    partial.mutable_data_ptr<float>(),
                                    grad_hidden.mutable_data_ptr(),
                                    grad_weight.mutable_data_ptr(),
                                    bias ? grad_bias.mutable_data_ptr() : nullptr};
  backward.problem.statistics = const_cast<float*>(statistics.const_data_ptr<float>());  // only read
  check_started(op, vleff_vocabulary_log_probs_backward_cuda(&backward, current_stream(hidden)));
  return {grad_hidden, grad_weight, grad_bias};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CUDA, library) {
  library.impl("vocabulary_log_probs", TORCH_BOX(&vleff::forward_cuda));
  library.impl("vocabulary_log_probs_backward", TORCH_BOX(&vleff::backward_cuda));
}

#include "../kernels/cpu/vocabulary_log_probs.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../kernels/cpu/isa.h"
#include "parallel.h"
#include "target_words.h"
#include "vocabulary_checks.h"

VLEFF_DISPATCH(VocabularyLogProbsKernels, vocabulary_log_probs_kernels)

namespace vleff {
namespace {

// Checked; holds the tensors that `problem` points into.
struct Inputs {
  VocabularyProblem problem;
  Tensor hidden, weight;
  OptionalTensor bias;
  Tensor targets;
};

Inputs checked_inputs(const char* op, const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                      const Tensor& targets) {
  check_vocabulary_operands(op, hidden, weight, bias, DeviceType::CPU);
  const int64_t rows = hidden.size(0), width = hidden.size(1), words = weight.size(0);
  Inputs inputs{{},
                as_contiguous(hidden),
                as_contiguous(weight),
                as_contiguous(bias),
                checked_target_words(op, targets, rows, words)};
  inputs.problem = {data_type(hidden),
                    rows,
                    width,
                    words,
                    inputs.hidden.const_data_ptr(),
                    inputs.weight.const_data_ptr(),
                    inputs.bias ? inputs.bias->const_data_ptr() : nullptr,
                    inputs.targets.const_data_ptr<int32_t>()};
  return inputs;
}

std::tuple<Tensor, Tensor> forward(Tensor hidden, Tensor weight, OptionalTensor bias, Tensor targets) {
  const Inputs inputs = checked_inputs("vocabulary_log_probs", hidden, weight, bias, targets);
  const VocabularyProblem& problem = inputs.problem;
  Tensor log_probs = torch::stable::empty({problem.rows}, ScalarType::Float);
  Tensor statistics = torch::stable::empty({problem.rows, 2}, ScalarType::Float);
  const VocabularyLogProbsKernels& kernels = active_vocabulary_log_probs_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(kernels.forward_scratch_bytes(problem, parallel.threads));
  kernels.forward(problem,
                  {log_probs.mutable_data_ptr<float>(),
                   reinterpret_cast<SoftmaxStatistics*>(statistics.mutable_data_ptr<float>())},
                  scratch.data(), parallel);
  return {log_probs, statistics};
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_log_probs, Tensor hidden, Tensor weight,
                                            OptionalTensor bias, Tensor targets, Tensor statistics) {
  const char* op = "vocabulary_log_probs_backward";
  const Inputs inputs = checked_inputs(op, hidden, weight, bias, targets);
  const VocabularyProblem& problem = inputs.problem;
  check_vocabulary_gradient(op, hidden, grad_log_probs, statistics, DeviceType::CPU);
  grad_log_probs = as_contiguous(grad_log_probs);
  statistics = as_contiguous(statistics);
  const ScalarType type = hidden.scalar_type();
  Tensor grad_hidden = torch::stable::empty({problem.rows, problem.width}, type);
  Tensor grad_weight = torch::stable::empty({problem.words, problem.width}, type);
  Tensor grad_bias = torch::stable::empty({bias ? problem.words : 0}, type);
  const VocabularyLogProbsKernels& kernels = active_vocabulary_log_probs_kernels();
  const Parallel parallel = torch_parallel();
  const Scratch scratch(kernels.backward_scratch_bytes(problem, parallel.threads));
  kernels.backward(problem,
                   {grad_log_probs.const_data_ptr<float>(),
                    reinterpret_cast<const SoftmaxStatistics*>(statistics.const_data_ptr<float>()),
                    grad_hidden.mutable_data_ptr(), grad_weight.mutable_data_ptr(),
                    bias ? grad_bias.mutable_data_ptr() : nullptr},
                   scratch.data(), parallel);
  return {grad_hidden, grad_weight, grad_bias};
}

}  // namespace
}  // namespace vleff

STABLE_TORCH_LIBRARY_IMPL(vleff, CPU, library) {
  library.impl("vocabulary_log_probs", TORCH_BOX(&vleff::forward));
  library.impl("vocabulary_log_probs_backward", TORCH_BOX(&vleff::backward));
}

#include "launch.cuh"
#include "vocabulary_log_probs.cuh"

namespace vleff::cuda {
namespace {

int64_t quotient_up(int64_t numerator, int64_t denominator) {
  return (numerator + denominator - 1) / denominator;
}

struct Forward {
  const VocabularyForward& forward;
  cudaStream_t stream;

  template <class Tile>
  cudaError_t start() const {
    const VocabularyLogProbs& problem = forward.problem;
    const int64_t tiles =
        quotient_up(problem.rows, Tile::stationary_rows) * quotient_up(problem.words, Tile::streamed_rows);
    const cudaError_t error = launch(vocabulary_statistics<Tile>, forward, tiles, Tile::threads,
                                     product_shared_bytes<Tile>, stream);
    if (error != cudaSuccess) return error;
    return launch(vocabulary_log_probs, forward, quotient_up(problem.rows, warps_of_rows),
                  warps_of_rows * warp_size, 0, stream);
  }
};

struct Backward {
  const VocabularyBackward& backward;
  cudaStream_t stream;

  template <class Tile>
  cudaError_t start() const {
    for (int64_t first = 0; first < backward.problem.words; first += backward.chunk_words) {
      const int64_t left = backward.problem.words - first;
      const VocabularyChunk chunk{backward, first, left < backward.chunk_words ? left : backward.chunk_words};
      const cudaError_t error = start_chunk<Tile>(chunk);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }

  template <class Tile>
  cudaError_t start_chunk(const VocabularyChunk& chunk) const {
    using T = typename Tile::Element;
    const VocabularyLogProbs& problem = backward.problem;
    const RaggedSide rows{nullptr, {nullptr, false}, problem.rows, problem.rows, problem.rows};
    const RaggedSide words{nullptr, {nullptr, false}, chunk.words, chunk.words, chunk.words};
    const int64_t row_tiles = quotient_up(problem.rows, Tile::stationary_rows);
    const int64_t word_tiles = quotient_up(chunk.words, Tile::streamed_rows);
    const int64_t slices = quotient_up(problem.width, Tile::width),
                  first_element = chunk.first_word * problem.width;
    cudaError_t error = launch(vocabulary_logit_gradients<Tile>, chunk, row_tiles * word_tiles, Tile::threads,
                               product_shared_bytes<Tile>, stream);
    if (error != cudaSuccess) return error;
    WeightedSums sums{};
    sums.batch = 1;
    sums.width = problem.width;
    sums.weights = backward.logit_gradients;
    sums.weights_stride = backward.chunk_words;
    sums.factors = backward.factors;
    sums.scale = 1.0f / weight_unit;
    sums.partial = backward.partial;

    WeightedSums of_weight = sums;
    of_weight.results = words;
    of_weight.summed = rows;
    of_weight.rows = problem.hidden;
    of_weight.first = of_weight.last = true;
    of_weight.result = static_cast<T*>(backward.grad_weight) + first_element;
    error = launch(weighted_sums<Tile, true>, of_weight, word_tiles * slices, Tile::threads,
                   product_shared_bytes<Tile>, stream);
    if (error != cudaSuccess) return error;

    WeightedSums of_hidden = sums;
    of_hidden.results = rows;
    of_hidden.summed = words;
    of_hidden.rows = static_cast<const T*>(problem.weight) + first_element;
    of_hidden.first = chunk.first_word == 0;
    of_hidden.last = chunk.first_word + chunk.words == problem.words;
    of_hidden.result = backward.grad_hidden;
    error = launch(weighted_sums<Tile, false>, of_hidden, row_tiles * slices, Tile::threads,
                   product_shared_bytes<Tile>, stream);
    if (error != cudaSuccess || !backward.grad_bias) return error;
    return launch(vocabulary_grad_bias<T>, chunk, quotient_up(chunk.words, bias_threads), bias_threads, 0,
                  stream);
  }
};

template <class Pass>
cudaError_t start_tile(const Pass& pass, DataType type) {
#define VLEFF_TILE(element, width, stationary, streamed)                                                \
  static_assert(product_shared_bytes<Tile<element, width, stationary, streamed>> <= most_shared_bytes); \
  if (type == type_of(element{})) return pass.template start<Tile<element, width, stationary, streamed>>();
#include "vocabulary_log_probs_tiles.inc"
#undef VLEFF_TILE
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace vleff::cuda

int vleff_vocabulary_log_probs_cuda(const vleff::cuda::VocabularyForward* forward, void* stream) {
  const vleff::cuda::Forward pass{*forward, static_cast<cudaStream_t>(stream)};
  return vleff::cuda::start_tile(pass, forward->problem.type);
}

int vleff_vocabulary_log_probs_backward_cuda(const vleff::cuda::VocabularyBackward* backward, void* stream) {
  const vleff::cuda::Backward pass{*backward, static_cast<cudaStream_t>(stream)};
  return vleff::cuda::start_tile(pass, backward->problem.type);
}

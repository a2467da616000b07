#include "launch.cuh"
#include "token_gather_attention_backward.cuh"

namespace vleff::cuda {
namespace {

int64_t blocks_of(const AttentionProblem& problem, const RaggedSide& side, int tile_rows) {
  return side.total == 0 ? 0 : (problem.batch + 1) * problem.heads * tiles_of(side, tile_rows);
}

template <class Tile>
cudaError_t start_tile(const AttentionGradientProblem& gradient, cudaStream_t stream) {
  using T = typename Tile::Element;
  static_assert(backward_shared_bytes<Tile> <= most_shared_bytes);
  constexpr int column_parts = Tile::width / gradient_columns<Tile>;
  const AttentionProblem& problem = gradient.attention;
  const int64_t rows = problem.queries.total * problem.heads;
  cudaError_t error = cudaSuccess;
  const auto start = [&](void (*kernel)(AttentionGradientProblem), int64_t blocks, int threads,
                         int shared_bytes) {
    if (error == cudaSuccess) error = launch(kernel, gradient, blocks, threads, shared_bytes, stream);
  };
  start(token_gather_attention_delta<T>, (rows + delta_warps - 1) / delta_warps, delta_warps * warp_size, 0);
  start(token_gather_attention_grad_queries<Tile>, blocks_of(problem, problem.queries, Tile::stationary_rows),
        Tile::threads, backward_shared_bytes<Tile>);
  start(token_gather_attention_grad_keys<Tile>,
        column_parts * blocks_of(problem, problem.keys, Tile::stationary_rows), Tile::threads,
        backward_shared_bytes<Tile>);
  if (gradient.grad_key_bias) {
    constexpr int threads = delta_warps * warp_size;
    start(token_gather_attention_grad_key_bias, (problem.keys.total + threads - 1) / threads, threads, 0);
  }
  return error;
}

cudaError_t start_smallest_tile(const AttentionGradientProblem& gradient, cudaStream_t stream) {
  const AttentionProblem& problem = gradient.attention;
#define VLEFF_TILE(element, width, stationary, streamed)                 \
  if (problem.type == type_of(element{}) && problem.head_dim <= (width)) \
    return start_tile<Tile<element, width, stationary, streamed>>(gradient, stream);
#include "token_gather_attention_backward_tiles.inc"
#undef VLEFF_TILE
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace vleff::cuda

int vleff_token_gather_attention_backward_cuda(const vleff::cuda::AttentionGradientProblem* problem,
                                               void* stream) {
  return vleff::cuda::start_smallest_tile(*problem, static_cast<cudaStream_t>(stream));
}

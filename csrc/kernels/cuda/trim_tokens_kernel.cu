#include "launch.cuh"
#include "trim_tokens.cuh"
#include "trim_tokens_score.cuh"

namespace vleff::cuda {
namespace {

template <class Tile>
cudaError_t start_all(const TrimTokensProblem& problem, cudaStream_t stream) {
  using T = typename Tile::Element;
  static_assert(product_shared_bytes<Tile> <= most_shared_bytes && score_shared_bytes <= most_shared_bytes);
  const int64_t token_tiles = tiles_in(problem.tokens, Tile::rows);
  const int parts_bytes = static_cast<int>(2 * problem.rank * sizeof(float));
  cudaError_t error = cudaSuccess;
  const auto start = [&](void (*kernel)(TrimTokensProblem), int64_t blocks, int threads, int shared_bytes) {
    if (error == cudaSuccess) error = launch(kernel, problem, blocks, threads, shared_bytes, stream);
  };
  start(trim_tokens_statistics<T>, tiles_in(problem.tokens, trim_warps), trim_threads, 0);
  start(trim_tokens_pool<T>, problem.parts * tiles_in(problem.width, trim_threads), trim_threads, 0);
  start(trim_tokens_parts<T>, problem.parts, trim_threads, parts_bytes);
  start(trim_tokens_project<Tile>, token_tiles * tiles_in(problem.rank, Tile::columns), Tile::threads,
        product_shared_bytes<Tile>);
  start(trim_tokens_score<T>, tiles_in(problem.tokens, ScoreTile::rows), ScoreTile::threads,
        score_shared_bytes);
  start(trim_tokens_list, 1, list_threads, 0);
  return error;
}

cudaError_t start(const TrimTokensProblem& problem, cudaStream_t stream) {
#define VLEFF_TILE(element, rows, columns, depth) \
  if (problem.type == type_of(element{}))         \
    return start_all<ProductTile<element, rows, columns, depth>>(problem, stream);
#include "trim_tokens_tiles.inc"
#undef VLEFF_TILE
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace vleff::cuda

int vleff_trim_tokens_cuda(const vleff::cuda::TrimTokensProblem* problem, void* stream) {
  return vleff::cuda::start(*problem, static_cast<cudaStream_t>(stream));
}

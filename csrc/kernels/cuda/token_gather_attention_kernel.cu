#include "launch.cuh"
#include "token_gather_attention.cuh"
#include "token_gather_attention_importance.cuh"

namespace vleff::cuda {
namespace {

// Sample number `batch` stands for the rows of no sample.
int64_t blocks_of(const AttentionProblem& problem, const RaggedSide& side, int tile_rows) {
  return side.total == 0 ? 0 : (problem.batch + 1) * problem.heads * tiles_of(side, tile_rows);
}

template <class Tile>
cudaError_t start_tile(const AttentionProblem& problem, cudaStream_t stream) {
  static_assert(forward_shared_bytes<Tile> <= most_shared_bytes);
  const cudaError_t error = launch(token_gather_attention_forward<Tile>, problem,
                                   blocks_of(problem, problem.queries, Tile::stationary_rows), Tile::threads,
                                   forward_shared_bytes<Tile>, stream);
  if (error != cudaSuccess || !problem.importance) return error;
  return launch(token_gather_attention_importance<Tile>, problem,
                blocks_of(problem, problem.keys, Tile::stationary_rows), Tile::threads,
                importance_shared_bytes<Tile>, stream);
}

cudaError_t start_smallest_tile(const AttentionProblem& problem, cudaStream_t stream) {
#define VLEFF_TILE(element, width, stationary, streamed)                 \
  if (problem.type == type_of(element{}) && problem.head_dim <= (width)) \
    return start_tile<Tile<element, width, stationary, streamed>>(problem, stream);
#include "token_gather_attention_tiles.inc"
#undef VLEFF_TILE
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace vleff::cuda

int vleff_token_gather_attention_cuda(const vleff::cuda::AttentionProblem* problem, void* stream) {
  return vleff::cuda::start_smallest_tile(*problem, static_cast<cudaStream_t>(stream));
}

const char* vleff_cuda_error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

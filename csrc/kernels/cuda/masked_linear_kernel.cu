#include "launch.cuh"
#include "masked_linear.cuh"
#include "masked_linear_gradient.cuh"

namespace vleff::cuda {
namespace {

template <class Tile>
cudaError_t start(const SparseLinearProblem& problem, cudaStream_t stream) {
  static_assert(masked_linear_shared_bytes<Tile> <= most_shared_bytes);
  const int64_t token_tiles = (problem.tokens + Tile::stationary_rows - 1) / Tile::stationary_rows;
  const int64_t parts = ChunkPart::count(problem.weight.structure, Tile::streamed_rows);
  return launch(masked_linear_forward<Tile>, problem, token_tiles * parts, Tile::threads,
                masked_linear_shared_bytes<Tile>, stream);
}

template <class Tile>
cudaError_t start(const SparseGradientProblem& problem, cudaStream_t stream) {
  static_assert(GradValuesMemory<Tile>::bytes <= most_shared_bytes);
  const MaskedStructure& structure = problem.weight.structure;
  const int64_t parts = ChunkPart::count(structure, Tile::stationary_rows);
  return launch(masked_linear_grad_values<Tile>, problem, parts * ChunkPart::column_blocks(structure),
                Tile::threads, GradValuesMemory<Tile>::bytes, stream);
}

template <class Problem>
cudaError_t start_smallest_tile(const Problem& problem, cudaStream_t stream) {
#define VLEFF_TILE(element, width, stationary, streamed)                                      \
  if (problem.type == type_of(element{}) && problem.weight.structure.column_block <= (width)) \
    return start<Tile<element, width, stationary, streamed>>(problem, stream);
#include "masked_linear_tiles.inc"
#undef VLEFF_TILE
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace vleff::cuda

int vleff_masked_linear_cuda(const vleff::cuda::SparseLinearProblem* problem, void* stream) {
  return vleff::cuda::start_smallest_tile(*problem, static_cast<cudaStream_t>(stream));
}

int vleff_masked_linear_grad_values_cuda(const vleff::cuda::SparseGradientProblem* problem, void* stream) {
  return vleff::cuda::start_smallest_tile(*problem, static_cast<cudaStream_t>(stream));
}

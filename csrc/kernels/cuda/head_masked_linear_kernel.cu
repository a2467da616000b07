#include "head_masked_grad_weight.cuh"
#include "head_masked_linear.cuh"
#include "launch.cuh"

namespace vleff::cuda {
namespace {

// Where no head is dropped, they are taken as one.
HeadFeatures blocks_of(const HeadFeatures& features, const HeadMask& mask) {
  return mask.kept ? features : HeadFeatures{1, 1, features.count(), features.width};
}

template <class Tile>
cudaError_t start_product(HeadMaskedProblem problem, cudaStream_t stream) {
  constexpr int shared_bytes = product_shared_bytes<Tile>;
  static_assert(shared_bytes <= most_shared_bytes);
  problem.features = blocks_of(problem.features, problem.mask);
  problem.mask.heads = problem.features.heads;
  const HeadFeatures& f = problem.features;
  const int64_t token_tiles = tiles_in(problem.tokens, Tile::rows);
  if (problem.direction == HeadMaskedDirection::project) {
    const bool by_depth = problem.weight.width_stride != 1;
    const int64_t blocks = token_tiles * f.parts * f.heads * tiles_in(f.head_dim, Tile::columns);
    return launch(by_depth ? head_masked_project<Tile, true> : head_masked_project<Tile, false>, problem,
                  blocks, Tile::threads, shared_bytes, stream);
  }
  const bool by_depth = problem.weight.feature_stride != 1;
  return launch(by_depth ? head_masked_reduce<Tile, true> : head_masked_reduce<Tile, false>, problem,
                token_tiles * tiles_in(f.width, Tile::columns), Tile::threads, shared_bytes, stream);
}

template <class Tile>
cudaError_t start_grad_weight(HeadMaskedGradWeightProblem problem, cudaStream_t stream) {
  problem.features = blocks_of(problem.features, problem.mask);
  problem.mask.heads = problem.features.heads;
  const HeadFeatures& f = problem.features;
  const int64_t blocks =
      f.parts * f.heads * tiles_in(f.head_dim, Tile::rows) * tiles_in(f.width, Tile::columns);
  return launch(head_masked_grad_weight<Tile>, problem, blocks, Tile::threads, product_shared_bytes<Tile>,
                stream);
}

cudaError_t start(const HeadMaskedProblem& problem, cudaStream_t stream) {
#define VLEFF_TILE(element, rows, columns, depth) \
  if (problem.type == type_of(element{}))         \
    return start_product<ProductTile<element, rows, columns, depth>>(problem, stream);
#include "head_masked_linear_tiles.inc"
#undef VLEFF_TILE
  return cudaErrorInvalidValue;
}

cudaError_t start(const HeadMaskedGradWeightProblem& problem, cudaStream_t stream) {
#define VLEFF_TILE(element, rows, columns, depth) \
  if (problem.type == type_of(element{}))         \
    return start_grad_weight<ProductTile<element, rows, columns, depth>>(problem, stream);
#include "head_masked_linear_tiles.inc"
#undef VLEFF_TILE
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace vleff::cuda

int vleff_head_masked_linear_cuda(const vleff::cuda::HeadMaskedProblem* problem, void* stream) {
  return vleff::cuda::start(*problem, static_cast<cudaStream_t>(stream));
}

int vleff_head_masked_grad_weight_cuda(const vleff::cuda::HeadMaskedGradWeightProblem* problem,
                                       void* stream) {
  return vleff::cuda::start(*problem, static_cast<cudaStream_t>(stream));
}

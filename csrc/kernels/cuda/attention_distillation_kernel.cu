#include "attention_distillation_backward.cuh"
#include "attention_distillation_forward.cuh"
#include "launch.cuh"

namespace vleff::cuda {
namespace {

// One for each tile of each sample and head, and for rows of no sample.
int64_t blocks_of(const DistillationProblem& problem, const RaggedSide& side, int tile_rows) {
  return side.total == 0 ? 0 : (problem.batch + 1) * problem.heads * tiles_of(side, tile_rows);
}

struct Forward {
  const DistillationProblem& problem;
  cudaStream_t stream;

  template <class Tile>
  cudaError_t start() const {
    return launch(attention_distillation_forward<Tile>, problem,
                  blocks_of(problem, problem.queries, Tile::stationary_rows), Tile::threads,
                  DistillationMemory<Tile>::bytes, stream);
  }
};

struct Backward {
  const DistillationGradient& gradient;
  cudaStream_t stream;

  template <class Tile>
  cudaError_t start() const {
    static_assert(grad_k_shared_bytes<Tile> <= most_shared_bytes);
    const DistillationProblem& problem = gradient.problem;
    const cudaError_t error = launch(attention_distillation_grad_q<Tile>, gradient,
                                     blocks_of(problem, problem.queries, Tile::stationary_rows),
                                     Tile::threads, DistillationMemory<Tile>::bytes, stream);
    if (error != cudaSuccess) return error;
    return launch(attention_distillation_grad_k<Tile>, gradient,
                  blocks_of(problem, problem.keys, Tile::stationary_rows), Tile::threads,
                  grad_k_shared_bytes<Tile>, stream);
  }
};

template <class Pass>
cudaError_t start_smallest_tile(const Pass& pass, const DistillationProblem& problem) {
  const int64_t head_dim = problem.teacher.head_dim > problem.student.head_dim ? problem.teacher.head_dim
                                                                               : problem.student.head_dim;
#define VLEFF_TILE(element, width, stationary, streamed)         \
  if (problem.type == type_of(element{}) && head_dim <= (width)) \
    return pass.template start<Tile<element, width, stationary, streamed>>();
#include "attention_distillation_tiles.inc"
#undef VLEFF_TILE
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace vleff::cuda

int vleff_attention_distillation_cuda(const vleff::cuda::DistillationProblem* problem, void* stream) {
  return vleff::cuda::start_smallest_tile(vleff::cuda::Forward{*problem, static_cast<cudaStream_t>(stream)},
                                          *problem);
}

int vleff_attention_distillation_backward_cuda(const vleff::cuda::DistillationGradient* gradient,
                                               void* stream) {
  return vleff::cuda::start_smallest_tile(vleff::cuda::Backward{*gradient, static_cast<cudaStream_t>(stream)},
                                          gradient->problem);
}

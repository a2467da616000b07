#include "copy_attention_gradient.cuh"
#include "copy_attention_rows.cuh"
#include "launch.cuh"

namespace vleff::cuda {
namespace {

constexpr int row_block_threads = warps_of_rows * warp_size;

// Blocks whose warps take a query each.
int64_t row_blocks(const CopyLogits& problem) {
  return problem.batch * square_tiles(problem.query_rows, warps_of_rows);
}

template <class Tile>
cudaError_t start_logits(const CopyLogits& problem, cudaStream_t stream) {
  static_assert(product_shared_bytes<Tile> <= most_shared_bytes);
  return launch(copy_logits<Tile>, problem, problem.batch * logit_tiles<Tile>(problem), Tile::threads,
                product_shared_bytes<Tile>, stream);
}

template <class Tile>
cudaError_t start(const CopyOfTargets& targets, cudaStream_t stream) {
  const CopyLogits& problem = targets.logits;
  cudaError_t error = start_logits<Tile>(problem, stream);
  if (error != cudaSuccess) return error;
  error = launch(copy_log_probs<typename Tile::Element>, targets, row_blocks(problem), row_block_threads, 0,
                 stream);
  if (error != cudaSuccess || !targets.coverage_loss) return error;
  for (int source = 0; source < copy_sources; ++source) {
    error = launch(copy_cover, CopyCoverage{targets, source},
                   problem.batch * position_blocks(problem.memories[source]), position_threads, 0, stream);
    if (error != cudaSuccess) return error;
  }
  return launch(copy_coverage_loss, targets, row_blocks(problem), row_block_threads, 0, stream);
}

// Queries' gradients add what both memories give; then each memory's keys have theirs.
template <class Tile>
cudaError_t start_sums(const CopyOfTargetsGradient& gradient, cudaStream_t stream) {
  const CopyLogits& problem = gradient.targets.logits;
  const int64_t slices = (problem.width + Tile::width - 1) / Tile::width;
  WeightedSums sums{};
  sums.batch = problem.batch;
  sums.width = problem.width;
  sums.factors = gradient.factors;
  sums.scale = problem.scale / weight_unit;
  sums.partial = gradient.partial;
  for (int source = 0; source < copy_sources; ++source) {
    const CopyMemory& memory = problem.memories[source];
    sums.weights = gradient.logit_gradients[source];
    sums.weights_stride = gradient.gradient_stride[source];
    sums.results = problem.query_rows;
    sums.summed = memory.rows;
    sums.rows = memory.keys;
    sums.first = source == 0;
    sums.last = source + 1 == copy_sources;
    sums.result = gradient.grad_queries;
    cudaError_t error = launch(weighted_sums<Tile, false>, sums,
                               problem.batch * slices * square_tiles(problem.query_rows, Tile::width),
                               Tile::threads, product_shared_bytes<Tile>, stream);
    if (error != cudaSuccess) return error;
    sums.results = memory.rows;
    sums.summed = problem.query_rows;
    sums.rows = problem.queries;
    sums.first = sums.last = true;
    sums.result = gradient.grad_keys[source];
    error = launch(weighted_sums<Tile, true>, sums,
                   problem.batch * slices * square_tiles(memory.rows, Tile::width), Tile::threads,
                   product_shared_bytes<Tile>, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class Tile>
cudaError_t start(const CopyOfTargetsGradient& gradient, cudaStream_t stream) {
  const CopyLogits& problem = gradient.targets.logits;
  cudaError_t error = start_logits<Tile>(problem, stream);
  if (error != cudaSuccess) return error;
  for (int source = 0; source < copy_sources && gradient.grad_coverage_loss; ++source) {
    error = launch(copy_coverage_gradient, CopyCoverageGradient{gradient, source},
                   problem.batch * position_blocks(problem.memories[source]), position_threads, 0, stream);
    if (error != cudaSuccess) return error;
  }
  error = launch(copy_logit_gradients<typename Tile::Element>, gradient, row_blocks(problem),
                 row_block_threads, 0, stream);
  return error == cudaSuccess ? start_sums<Tile>(gradient, stream) : error;
}

template <class Tile>
cudaError_t start(const CopyOfWords& rows, cudaStream_t stream) {
  const CopyLogits& problem = rows.logits;
  const cudaError_t error = start_logits<Tile>(problem, stream);
  if (error != cudaSuccess) return error;
  return launch(copy_word_log_probs<typename Tile::Element>, rows,
                (problem.batch + 1) * problem.query_rows.longest, row_threads, 0, stream);
}

template <class Pass>
cudaError_t start_tile(const Pass& pass, DataType type, void* stream) {
#define VLEFF_TILE(element, width, stationary, streamed) \
  if (type == type_of(element{}))                        \
    return start<Tile<element, width, stationary, streamed>>(pass, static_cast<cudaStream_t>(stream));
#include "copy_attention_tiles.inc"
#undef VLEFF_TILE
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace vleff::cuda

int vleff_copy_attention_cuda(const vleff::cuda::CopyOfTargets* targets, void* stream) {
  return vleff::cuda::start_tile(*targets, targets->logits.type, stream);
}

int vleff_copy_attention_backward_cuda(const vleff::cuda::CopyOfTargetsGradient* gradient, void* stream) {
  return vleff::cuda::start_tile(*gradient, gradient->targets.logits.type, stream);
}

int vleff_copy_attention_rows_cuda(const vleff::cuda::CopyOfWords* rows, void* stream) {
  return vleff::cuda::start_tile(*rows, rows->logits.type, stream);
}

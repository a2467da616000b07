#include "token_gather_attention.cuh"
#include "token_gather_attention_importance.cuh"

namespace vleff::cuda {
namespace {

constexpr int most_shared_bytes = 99 * 1024;  // of a block, on compute capability 8.6 and 8.9

constexpr DataType type_of(float) {
  return DataType::float32;
}
constexpr DataType type_of(__nv_bfloat16) {
  return DataType::bfloat16;
}
constexpr DataType type_of(__half) {
  return DataType::float16;
}

using Kernel = void (*)(AttentionProblem);

cudaError_t start(Kernel kernel, const AttentionProblem& problem, const RaggedSide& side, int tile_rows,
                  int threads, int shared_bytes, cudaStream_t stream) {
  if (side.total == 0) return cudaSuccess;
  const int64_t blocks = (problem.batch + 1) * problem.heads * tiles_of(side, tile_rows);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(problem);
  return cudaGetLastError();
}

template <class Tile>
cudaError_t start_tile(const AttentionProblem& problem, cudaStream_t stream) {
  static_assert(forward_shared_bytes<Tile> <= most_shared_bytes);
  cudaError_t error = start(token_gather_attention_forward<Tile>, problem, problem.queries,
                            Tile::stationary_rows, Tile::threads, forward_shared_bytes<Tile>, stream);
  if (error != cudaSuccess || !problem.importance) return error;
  return start(token_gather_attention_importance<Tile>, problem, problem.keys, Tile::stationary_rows,
               Tile::threads, importance_shared_bytes<Tile>, stream);
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

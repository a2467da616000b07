#include "launch.cuh"
#include "trim_heads.cuh"

namespace vleff::cuda {
namespace {

template <class T>
cudaError_t start(const TrimHeadsProblem& problem, cudaStream_t stream) {
  return launch(trim_heads<T>, problem, problem.heads ? problem.batch : 0, trim_heads_warps * warp_size,
                trim_heads_shared_bytes(problem), stream);
}

}  // namespace
}  // namespace vleff::cuda

int vleff_trim_heads_cuda(const vleff::TrimHeadsProblem* problem, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (problem->type) {
    case vleff::DataType::float32:
      return vleff::cuda::start<float>(*problem, cuda_stream);
    case vleff::DataType::bfloat16:
      return vleff::cuda::start<__nv_bfloat16>(*problem, cuda_stream);
    case vleff::DataType::float16:
      return vleff::cuda::start<__half>(*problem, cuda_stream);
  }
  return cudaErrorInvalidValue;
}

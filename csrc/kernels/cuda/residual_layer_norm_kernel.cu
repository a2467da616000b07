#include "launch.cuh"
#include "residual_layer_norm.cuh"

namespace vleff::cuda {
namespace {

template <class T>
cudaError_t start(const LayerNormProblem& problem, cudaStream_t stream) {
  const auto kernel =
      problem.width <= held_width ? residual_layer_norm<T, true> : residual_layer_norm<T, false>;
  const int64_t blocks = (problem.rows + warps_of_rows - 1) / warps_of_rows;
  return launch(kernel, problem, blocks, warps_of_rows * warp_size, 0, stream);
}

}  // namespace
}  // namespace vleff::cuda

int vleff_residual_layer_norm_cuda(const vleff::cuda::LayerNormProblem* problem, void* stream) {
  using vleff::DataType;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (problem->type) {
    case DataType::float32:
      return vleff::cuda::start<float>(*problem, cuda_stream);
    case DataType::bfloat16:
      return vleff::cuda::start<__nv_bfloat16>(*problem, cuda_stream);
    case DataType::float16:
      return vleff::cuda::start<__half>(*problem, cuda_stream);
  }
  return cudaErrorInvalidValue;
}

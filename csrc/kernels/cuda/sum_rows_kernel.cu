#include "launch.cuh"
#include "sum_rows.cuh"

namespace vleff::cuda {
namespace {

template <class Rows, class Sums>
cudaError_t start(const SumRowsProblem& problem, cudaStream_t stream) {
  const int64_t groups = (problem.width + sum_rows_columns - 1) / sum_rows_columns;
  const int64_t blocks = (problem.stored * groups + sum_rows_warps - 1) / sum_rows_warps;
  return launch(sum_rows<Rows, Sums>, problem, blocks, sum_rows_warps * warp_size, 0, stream);
}

template <class T>
cudaError_t start_type(const SumRowsProblem& problem, cudaStream_t stream) {
  return problem.rows_type == DataType::float32 ? start<float, T>(problem, stream)
                                                : start<T, T>(problem, stream);
}

}  // namespace
}  // namespace vleff::cuda

int vleff_sum_rows_cuda(const vleff::cuda::SumRowsProblem* problem, void* stream) {
  using vleff::DataType;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (problem->rows_type != DataType::float32 && problem->rows_type != problem->sums_type) {
    return cudaErrorInvalidValue;
  }
  switch (problem->sums_type) {
    case DataType::float32:
      return vleff::cuda::start_type<float>(*problem, cuda_stream);
    case DataType::bfloat16:
      return vleff::cuda::start_type<__nv_bfloat16>(*problem, cuda_stream);
    case DataType::float16:
      return vleff::cuda::start_type<__half>(*problem, cuda_stream);
  }
  return cudaErrorInvalidValue;
}

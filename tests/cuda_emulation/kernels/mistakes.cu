#include <cuda_runtime.h>

#include <cstdint>

// Small kernels for one block of 64 threads, in pairs: one as it should be, and one with a mistake that the
// emulator must find. Input and output hold 64 floats.
namespace {

constexpr int threads = 64;

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <bool barrier>
__global__ void reverse(const float* input, float* output) {
  __shared__ float values[threads];
  values[threadIdx.x] = input[threadIdx.x];
  if (barrier) __syncthreads();
  output[threadIdx.x] = values[threads - 1 - threadIdx.x];
}

// Lanes of one warp alone
template <bool barrier>
__global__ void swap_in_warp(const float* input, float* output) {
  __shared__ float values[threads];
  values[threadIdx.x] = input[threadIdx.x];
  if (barrier) __syncwarp();
  output[threadIdx.x] = values[threadIdx.x ^ 1];
}

// A second write, before all have read the first
template <bool barrier>
__global__ void write_twice(const float* input, float* output) {
  __shared__ float values[threads];
  values[threadIdx.x] = input[threadIdx.x];
  __syncthreads();
  const float read = values[threads - 1 - threadIdx.x];
  if (barrier) __syncthreads();
  values[threadIdx.x] = read;
  output[threadIdx.x] = values[threadIdx.x];
}

template <int open_groups>
__global__ void copy_asynchronously(const float* input, float* output) {
  __shared__ float values[threads];
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(values + threadIdx.x)),
               "l"(input + threadIdx.x)
               : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  asm volatile("cp.async.wait_group %0;" ::"n"(open_groups) : "memory");
  output[threadIdx.x] = values[threadIdx.x];
}

template <bool wait>
__global__ void end_with_copies(const float* input, float* output) {
  __shared__ float values[threads];
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(values + threadIdx.x)),
               "l"(input + threadIdx.x)
               : "memory");
  output[threadIdx.x] = input[threadIdx.x];
  if (wait) asm volatile("cp.async.wait_all;" ::: "memory");
}

template <int first>
__global__ void read_from(const float* input, float* output) {
  output[threadIdx.x] = input[threadIdx.x + first];
}

template <int first>
__global__ void write_from(const float* input, float* output) {
  output[threadIdx.x + first] = input[threadIdx.x];
}

template <int first>
__global__ void read_shared_from(const float* input, float* output) {
  extern __shared__ float dynamic[];
  dynamic[threadIdx.x] = input[threadIdx.x];
  output[threadIdx.x] = dynamic[threadIdx.x + first];
}

template <bool all>
__global__ void divergent_barrier(const float* input, float* output) {
  if (all || threadIdx.x != 5) __syncthreads();
  if (threadIdx.x == 5 && !all) asm volatile("bar.sync 0;");
  output[threadIdx.x] = input[threadIdx.x];
}

template <bool all>
__global__ void divergent_shuffle(const float* input, float* output) {
  float value = input[threadIdx.x];
  if (all || threadIdx.x % 32 < 20) value = __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  output[threadIdx.x] = value;
}

template <bool inside>
__global__ void shuffle_from_outside(const float* input, float* output) {
  float value = input[threadIdx.x];
  if (threadIdx.x % 32 < 16) value = __shfl_xor_sync(0x0000FFFFu, value, inside ? 1 : 16);
  output[threadIdx.x] = value;
}

template <bool aligned>
__global__ void load_pair(const float* input, float* output) {
  const float2* pair = reinterpret_cast<const float2*>(input + (aligned ? 0 : 1));
  output[threadIdx.x] = pair->x + pair->y;
}

template <bool written>
__global__ void read_unwritten(const float* input, float* output) {
  __shared__ float values[threads];
  if (written || threadIdx.x != 7) values[threadIdx.x] = input[threadIdx.x];
  output[threadIdx.x] = values[threadIdx.x];
}

template <bool known>
__global__ void unknown_opcode(const float* input, float* output) {
  output[threadIdx.x] = input[threadIdx.x];
  if (!known) asm volatile("nanosleep.u32 1;");
}

// Rows of 128 bytes stand below each other in the banks, unless their chunks are mixed by the row number.
template <bool mixed>
__global__ void load_matrix(const float* input, float* output) {
  __shared__ __align__(128) float rows[32 * 32];
  for (int i = threadIdx.x; i < 32 * 32; i += threads) rows[i] = input[i % threads];
  __syncthreads();
  const int row = threadIdx.x % 32;
  uint32_t words[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(rows + row * 32 + (mixed ? row % 8 * 4 : 0)))
               : "memory");
  output[threadIdx.x] = __uint_as_float(words[0] ^ words[1] ^ words[2] ^ words[3]);
}

}  // namespace

#define PAIR(name, right, wrong)                                                                 \
  extern "C" int run_##name(bool correct, const float* input, float* output, int shared_bytes) { \
    const auto kernel = correct ? name<right> : name<wrong>;                                     \
    kernel<<<1, threads, shared_bytes>>>(input, output);                                         \
    return cudaGetLastError();                                                                   \
  }
PAIR(reverse, true, false)
PAIR(swap_in_warp, true, false)
PAIR(write_twice, true, false)
PAIR(copy_asynchronously, 0, 1)
PAIR(end_with_copies, true, false)
PAIR(read_from, 0, 1)
PAIR(write_from, 0, 1)
PAIR(read_shared_from, 0, 64)
PAIR(divergent_barrier, true, false)
PAIR(divergent_shuffle, true, false)
PAIR(shuffle_from_outside, true, false)
PAIR(load_pair, true, false)
PAIR(read_unwritten, true, false)
PAIR(unknown_opcode, true, false)
PAIR(load_matrix, true, false)

#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

// The instructions that CUDA C++ has no words for, all of compute capability 8.0. No other file holds PTX.
// Fragment layouts, for lane = 4 * group + thread of a warp:
//   left operand  [16 rows, 32 bytes]: 32-bit words (group, thread), (group + 8, thread), (group, thread +
//   4),
//                                      (group + 8, thread + 4)
//   right operand [8 columns, 32 bytes]: words (group, thread), (group, thread + 4)
//   sum           [16 rows, 8 columns]: (group, 2 * thread), (group, 2 * thread + 1), the same of row group +
//   8
namespace vleff::cuda {

constexpr int warp_size = 32;
constexpr unsigned whole_warp = 0xFFFFFFFFu;

using LeftFragment = uint32_t[4];
using RightFragment = uint32_t[2];
using SumFragment = float[4];

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Each lane names one 16-byte row of four 8 x 16-byte matrices; lane i gets word i of each matrix.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same with each matrix of 16-bit elements transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts a copy of `bytes` (at most `size`) from global to shared memory; the rest of `size` bytes becomes 0.
// Both addresses are multiples of `size`, which is 4 or 16.
template <int size>
__device__ __forceinline__ void copy_async(void* target, const void* source, int bytes) {
  if constexpr (size == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
                 "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(target)), "l"(source),
                 "r"(bytes)
                 : "memory");
  }
}

// Waits for the copies that this thread has started.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// 2 ** x to two units in the last place; -inf gives 0, NaN stays NaN.
__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// sum += left * right of tf32 operands; the lowest 13 bits of each word are ignored.
__device__ __forceinline__ void multiply_tf32(SumFragment& sum, const LeftFragment& left,
                                              const RightFragment& right) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

// sum += left * right for operands of T, over 32 bytes of depth.
template <class T>
__device__ __forceinline__ void multiply(SumFragment& sum, const LeftFragment& left,
                                         const RightFragment& right);

template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(SumFragment& sum, const LeftFragment& left,
                                                        const RightFragment& right) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

template <>
__device__ __forceinline__ void multiply<__half>(SumFragment& sum, const LeftFragment& left,
                                                 const RightFragment& right) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

// float32 as the sum of two tf32 numbers: the number rounded to 11 bits, and what that leaves. Three products
// of the parts keep the error of one product near 2 ** -22, where plain tf32 has 2 ** -11.
__device__ __forceinline__ uint32_t leading_bits(uint32_t word) {
  return (word + 0x1000u) & 0xFFFFE000u;
}
__device__ __forceinline__ uint32_t remaining_bits(uint32_t word) {
  return __float_as_uint(__uint_as_float(word) - __uint_as_float(leading_bits(word)));
}

template <>
__device__ __forceinline__ void multiply<float>(SumFragment& sum, const LeftFragment& left,
                                                const RightFragment& right) {
  const LeftFragment left_high = {leading_bits(left[0]), leading_bits(left[1]), leading_bits(left[2]),
                                  leading_bits(left[3])};
  const LeftFragment left_low = {remaining_bits(left[0]), remaining_bits(left[1]), remaining_bits(left[2]),
                                 remaining_bits(left[3])};
  const RightFragment right_high = {leading_bits(right[0]), leading_bits(right[1])};
  const RightFragment right_low = {remaining_bits(right[0]), remaining_bits(right[1])};
  multiply_tf32(sum, left_low, right_high);
  multiply_tf32(sum, left_high, right_low);
  multiply_tf32(sum, left_high, right_high);
}

__device__ __forceinline__ void add(SumFragment& sum, const SumFragment& part) {
#pragma unroll
  for (int e = 0; e < 4; ++e) sum[e] += part[e];
}

// As multiply. Tensor cores may round their sums towards zero, so float32 adds to a long sum outside of them.
template <class T>
__device__ __forceinline__ void add_product(SumFragment& sum, const LeftFragment& left,
                                            const RightFragment& right) {
  if constexpr (sizeof(T) == 2) {
    multiply<T>(sum, left, right);
  } else {
    SumFragment product = {};
    multiply<T>(product, left, right);
    add(sum, product);
  }
}

// Two neighbouring elements of memory.
template <class T>
struct Pair;
template <>
struct Pair<float> {
  using Type = float2;
  static __device__ __forceinline__ float2 of(float low, float high) { return {low, high}; }
};
template <>
struct Pair<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  static __device__ __forceinline__ __nv_bfloat162 of(float low, float high) {
    return __floats2bfloat162_rn(low, high);
  }
};
template <>
struct Pair<__half> {
  using Type = __half2;
  static __device__ __forceinline__ __half2 of(float low, float high) { return __floats2half2_rn(low, high); }
};

// Two 16-bit elements as a word of a fragment.
template <class T>
__device__ __forceinline__ uint32_t packed(float low, float high) {
  const typename Pair<T>::Type pair = Pair<T>::of(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace vleff::cuda

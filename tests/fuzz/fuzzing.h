#pragma once
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/data_type.h"
#include "kernels/parallel.h"

// What fuzz targets share. Every tensor is a heap block of exactly its size, so that a sanitizer reports any
// access outside it. A target defines check(seed), which aborts if a problem goes wrong.
//
// As a program: fuzz_OP SECONDS FIRST_SEED. Under libFuzzer (clang, -fsanitize=fuzzer, -DVLEFF_LIBFUZZER) the
// bytes are the seed.
void check(uint64_t seed);

namespace vleff {

inline std::unique_ptr<char[]> block(int64_t bytes) {
  auto data = std::make_unique<char[]>(bytes);
  std::memset(data.get(), 0xFF, bytes);  // NaN in every type: unwritten outputs show
  return data;
}

inline float as_float(const char* data, DataType type, int64_t element) {
  if (type == DataType::float32) {
    float value;
    std::memcpy(&value, data + 4 * element, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, data + 2 * element, 2);
  if (type == DataType::bfloat16) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

inline void put(char* data, DataType type, int64_t element, float value) {
  if (type == DataType::float32) {
    std::memcpy(data + 4 * element, &value, 4);
  } else if (type == DataType::bfloat16) {
    std::memcpy(data + 2 * element, reinterpret_cast<char*>(&value) + 2, 2);
  } else {
    _Float16 half = static_cast<_Float16>(value);
    std::memcpy(data + 2 * element, &half, 2);
  }
}

inline void run_workers(const Parallel&, int64_t workers, void (*body)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t worker = 0; worker < workers; ++worker) threads.emplace_back(body, context, worker);
  for (auto& thread : threads) thread.join();
}

// 64-byte aligned, filled with NaN.
inline std::unique_ptr<void, decltype(&std::free)> scratch(int64_t bytes) {
  void* data = std::aligned_alloc(64, (std::max<int64_t>(64, bytes) + 63) / 64 * 64);
  std::memset(data, 0xFF, bytes);
  return {data, &std::free};
}

using Tensors = std::vector<std::pair<std::vector<float>, const char*>>;

inline void compare(const Tensors& expected, const Tensors& found, float tolerance, const char* level,
                    uint64_t seed) {
  for (size_t t = 0; t < expected.size(); ++t) {
    const auto& [reference, name] = expected[t];
    float largest = 1.0f;
    for (float value : reference)
      if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
    for (size_t i = 0; i < reference.size(); ++i) {
      const float a = reference[i], b = found[t].first[i];
      if (std::isnan(b) || (a != b && !(std::fabs(a - b) <= tolerance * largest))) {
        std::fprintf(stderr, "seed %llu, level %s: %s[%zu] is %g, at the portable level %g\n",
                     static_cast<unsigned long long>(seed), level, name, i, b, a);
        std::abort();
      }
    }
  }
}

// Draws problems.
struct RandomCase {
  std::mt19937_64 random;

  explicit RandomCase(uint64_t seed) : random(seed) {}
  int64_t below(int64_t bound) { return static_cast<int64_t>(random() % bound); }
  bool one_in(int64_t n) { return below(n) == 0; }
  float number() { return std::normal_distribution<float>()(random); }

  std::unique_ptr<char[]> numbers(DataType type, int64_t count) {
    auto data = block(count * size_of(type));
    for (int64_t i = 0; i < count; ++i) put(data.get(), type, i, number());
    return data;
  }
  std::unique_ptr<int32_t[]> words(int64_t count, int64_t bound) {
    std::unique_ptr<int32_t[]> data(new int32_t[count]);
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<int32_t>(below(bound));
    return data;
  }
  // Of samples that are short, long or empty.
  std::vector<int32_t> offsets(int64_t batch, int64_t longest) {
    std::vector<int32_t> result{0};
    for (int64_t sample = 0; sample < batch; ++sample) {
      const int64_t length = one_in(5) ? 0 : 1 + below(one_in(4) ? longest : (longest + 7) / 8);
      result.push_back(result.back() + static_cast<int32_t>(length));
    }
    return result;
  }
};

inline int64_t longest_sample(const std::vector<int32_t>& offsets) {
  int32_t longest = 0;
  for (size_t i = 1; i < offsets.size(); ++i) longest = std::max(longest, offsets[i] - offsets[i - 1]);
  return longest;
}

inline void add(Tensors& tensors, const char* name, const std::unique_ptr<char[]>& data, DataType type,
                int64_t count) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = as_float(data.get(), type, i);
  tensors.emplace_back(std::move(values), name);
}

// Every level must agree with the portable one, any number of threads bit for bit. run(threads) -> Tensors
template <class Run>
void check_levels(DataType type, uint64_t seed, const Run& run) {
  set_active_isa(Isa::baseline);
  const Tensors expected = run(1);
  const float tolerance = type == DataType::float32 ? 2e-4f : 6e-2f;
  for (int level = 0; level <= static_cast<int>(detected_isa()); ++level) {
    const Isa isa = static_cast<Isa>(level);
    set_active_isa(isa);
    const Tensors one = run(1), two = run(2);
    compare(expected, one, tolerance, isa_name(isa), seed);
    compare(one, two, 0.0f, isa_name(isa), seed);
  }
}

}  // namespace vleff

#if defined(VLEFF_LIBFUZZER)
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint64_t seed = size;
  for (size_t i = 0; i < size; ++i) seed = seed * 0x9E3779B97F4A7C15u + data[i];
  check(seed);
  return 0;
}
#else
int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: %s SECONDS FIRST_SEED\n", arguments[0]);
    return 2;
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atol(arguments[1]));
  uint64_t seed = std::strtoull(arguments[2], nullptr, 10), cases = 0;
  for (; std::chrono::steady_clock::now() < end; ++seed, ++cases) check(seed);
  std::printf("%llu cases passed\n", static_cast<unsigned long long>(cases));
  return cases > 0 ? 0 : 1;
}
#endif

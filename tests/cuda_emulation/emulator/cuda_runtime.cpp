#include <cuda_runtime_api.h>
#include <signal.h>

#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "guarded_memory.h"
#include "machine.h"

// The functions of the CUDA runtime that the code around nvcc's kernel launches calls, and those by which the
// tests drive the emulator. Launches run at once, on the caller's time.
namespace emulation {
namespace {

constexpr int shared_bytes_without_asking = 48 * 1024, most_threads = 1024;
constexpr unsigned most_blocks_y = 65535;

struct Device {
  std::unique_ptr<ModuleText> module;
  Schedule schedule = Schedule::forward;
  uint64_t seed = 0;
  int shared_limit = 0;
  std::map<const void*, std::string> kernel_names;  // by the host's function
  std::map<std::string, Program> programs;
  std::map<std::string, int> allowed_shared_bytes;
  Statistics statistics;
  std::string statistics_text;
  cudaError_t last_error = cudaSuccess;
};

Device& device() {
  static Device device;
  return device;
}

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
};
thread_local std::vector<Configuration> configurations;

cudaError_t noted(cudaError_t error) {
  if (error != cudaSuccess) device().last_error = error;
  return error;
}

const Program& program_of(const std::string& kernel) {
  const auto found = device().programs.find(kernel);
  if (found != device().programs.end()) return found->second;
  try {
    return device().programs.emplace(kernel, assemble(device().module->kernel(kernel))).first->second;
  } catch (const std::exception& error) {
    fail(error.what());
  }
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t dynamic_bytes) {
  const std::string& kernel = device().kernel_names.at(function);
  const Program& program = program_of(kernel);
  const Size3 blocks{grid.x, grid.y, grid.z}, threads{block.x, block.y, block.z};
  const auto allowed = device().allowed_shared_bytes.find(kernel);
  const int limit =
      allowed == device().allowed_shared_bytes.end() ? shared_bytes_without_asking : allowed->second;
  const int shared_bytes = program.text.static_shared_bytes + static_cast<int>(dynamic_bytes);
  if (shared_bytes > limit || blocks.count() == 0 || grid.x > INT32_MAX || grid.y > most_blocks_y ||
      grid.z > most_blocks_y || threads.count() == 0 || threads.count() > most_threads ||
      threads.count() > static_cast<uint64_t>(program.text.most_threads))
    return cudaErrorInvalidValue;
  std::vector<uint64_t> parameters(program.text.parameter_bytes / sizeof(uint64_t) + 1);
  unsigned char* bytes = reinterpret_cast<unsigned char*>(parameters.data());
  for (size_t i = 0; i < program.text.parameter_names.size(); ++i) {
    const Variable& parameter = program.text.parameters.at(program.text.parameter_names[i]);
    memcpy(bytes + parameter.offset, arguments[i], parameter.bytes);
  }
  device().statistics.add(
      run({program, blocks, threads, shared_bytes, bytes, device().schedule}, device().seed));
  return cudaSuccess;
}

void report_fault(int, siginfo_t* information, void*) {
  std::ostringstream text;
  text << "access to memory outside of every allocation, at " << information->si_addr;
  fail(text.str());
}

}  // namespace
}  // namespace emulation

using emulation::device;

extern "C" {

// Reads kernels from a PTX file. shared_limit: bytes of shared memory that a block may ask for.
__attribute__((visibility("default"))) void emulation_start(const char* ptx_path, int shared_limit) {
  std::ifstream file(ptx_path);
  std::stringstream text;
  text << file.rdbuf();
  device().module = std::make_unique<emulation::ModuleText>(text.str());
  device().shared_limit = shared_limit;
  struct sigaction action = {};
  action.sa_sigaction = emulation::report_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

// schedule: 0 forward, 1 reverse, 2 random, of which the seed chooses one
__attribute__((visibility("default"))) void emulation_set_schedule(int schedule, uint64_t seed) {
  device().schedule = static_cast<emulation::Schedule>(schedule);
  device().seed = seed;
}

__attribute__((visibility("default"))) void* emulation_allocate(size_t bytes) {
  return emulation::allocate_guarded(bytes);
}

__attribute__((visibility("default"))) void emulation_free(void* memory) {
  emulation::free_guarded(memory);
}

// What was counted since the last call, as JSON; valid until the next call.
__attribute__((visibility("default"))) const char* emulation_take_statistics() {
  device().statistics_text = device().statistics.as_json();
  device().statistics = {};
  return device().statistics_text.c_str();
}

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* kernel, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  device().kernel_names[function] = kernel;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, struct CUstream_st* stream) {
  emulation::configurations.push_back({grid, block, shared_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  const emulation::Configuration configuration = emulation::configurations.back();
  emulation::configurations.pop_back();
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes, cudaStream_t) {
  return emulation::noted(emulation::launch(kernel, grid, block, arguments, shared_bytes));
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > device().shared_limit)
    return emulation::noted(cudaErrorInvalidValue);
  device().allowed_shared_bytes[device().kernel_names.at(function)] = value;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  return std::exchange(device().last_error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess             ? "no error"
         : error == cudaErrorInvalidValue ? "invalid argument"
                                          : "unspecified error";
}
}

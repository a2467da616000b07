#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "ptx.h"
#include "shared_memory.h"
#include "statistics.h"

// A multiprocessor at work on one block of threads at a time.
namespace emulation {

constexpr int warp_size = 32;
constexpr uint32_t all_lanes = 0xFFFFFFFFu;

class Warp;
struct Instruction;
using Execute = void (*)(Warp& warp, const Instruction& instruction, uint32_t lanes);

enum class Kind : uint8_t {
  plain,            // each lane for itself
  branch,           // to `numbers[0]`
  exit,             // of the thread
  warp_collective,  // waits for the lanes that its mask names, then is executed once for all of them
  block_barrier,    // waits for all threads of the block
};

// A statement made ready. Operands are places in a warp's registers, for constants too.
struct Instruction {
  Execute execute = nullptr;
  Kind kind = Kind::plain;
  bool guarded = false, guard_negated = false;
  int guard = 0;            // place of the predicate
  int mask = -1;            // place of a collective's mask of lanes; below 0: all lanes
  int places[16] = {};      // results, then sources
  int64_t numbers[2] = {};  // offsets of addresses; number of the statement that a branch goes to
  const Statement* statement = nullptr;
};

struct Size3 {
  uint32_t x, y, z;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

struct Program {
  struct Constant {
    int place, bits;
    uint64_t value;
  };
  struct SpecialRegister {
    int place;
    std::string name;  // "%tid.x"
  };
  struct ParameterAddress {
    int place, offset;
  };

  KernelText text;
  std::vector<Instruction> instructions;
  int register_bytes = 0;  // of a warp
  std::vector<Constant> constants;
  std::vector<SpecialRegister> special_registers;
  std::vector<ParameterAddress> parameter_addresses;
};

// Makes a kernel ready. Throws std::runtime_error for opcodes and operands that it does not know.
Program assemble(KernelText text);

// Which of several threads that could go on goes on. A kernel's results must not depend on it.
enum class Schedule {
  forward,  // lanes together as far as they can; warps and blocks in ascending order
  reverse,  // the upper half of a warp runs ahead of the lower one; warps and blocks in descending order
  random,   // random parts of a warp run ahead, random warps take turns, blocks in random order
};

class Block;

class Warp {
 public:
  Warp(Block& block, int number) : block(block), number(number) {}

  void start(const Program& program, const void* parameters, int threads);

  // Runs the lanes that can run; stops when none is left, or, by chance, in a random schedule.
  void run();

  bool can_run() const { return runnable_ != 0; }
  void release(uint32_t lanes);  // from the barrier of the block
  std::string waiting_places() const;

  template <class T>
  T* lanes(int place) {
    return reinterpret_cast<T*>(registers_.data()->bytes + place);
  }
  uint32_t& predicate(int place) { return *lanes<uint32_t>(place); }

  int thread(int lane) const { return number * warp_size + lane; }
  Actor actor(int lane) const;
  void passed_barrier_of_warp() { ++epoch_; }

  Block& block;
  const int number;
  uint32_t existing = 0, exited = 0, at_block_barrier = 0;
  int program_counter[warp_size] = {};
  std::vector<AsyncCopy> open_copies[warp_size];  // begun, in no group yet
  std::vector<std::vector<AsyncCopy>> copy_groups[warp_size];

 private:
  struct Meeting {  // of lanes at a collective
    int program_counter;
    uint32_t mask, arrived;
  };

  uint32_t choose_lanes();
  void run_lanes(uint32_t lanes);
  bool meet(const Instruction& instruction, int program_counter, uint32_t lanes);
  void move(uint32_t lanes, int program_counter);
  void leave(uint32_t lanes);

  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::vector<Line> registers_;
  const Program* program_ = nullptr;
  uint32_t runnable_ = 0, epoch_ = 0;
  int next_place_ = 0;  // of lanes that the running ones are to meet again
  std::vector<Meeting> meetings_;
};

struct Launch {
  const Program& program;
  Size3 grid, block;
  int shared_bytes;  // static and dynamic
  const void* parameters;
  Schedule schedule;
};

class Block {
 public:
  Block(const Launch& launch, uint64_t seed);

  void run(uint64_t block_number);
  void arrive_at_barrier();  // called when a thread waits there or exits

  const Launch& launch;
  Size3 index{};
  SharedMemory shared;
  Statistics statistics;
  std::mt19937 random;
  uint32_t epoch = 0;  // barriers passed

 private:
  const uint64_t seed_;
  std::vector<Warp> warps_;
};

// Runs all blocks, several at a time. The seed is that of a random schedule.
Statistics run(const Launch& launch, uint64_t seed);

// Reports what went wrong, where, and ends the process: the state is not one to go on with.
[[noreturn]] void fail(const std::string& message);

// What this thread of the host is executing, for the report.
struct Position {
  const Block* block = nullptr;
  const Warp* warp = nullptr;
  const Instruction* instruction = nullptr;
  uint32_t lanes = 0;
};
extern thread_local Position position;

}  // namespace emulation

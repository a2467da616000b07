#include "machine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <numeric>
#include <thread>

namespace emulation {
namespace {

constexpr uint32_t upper_half = 0xFFFF0000u;

std::string text_of(const Size3& size) {
  return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
}

Size3 index_in(const Size3& size, uint64_t number) {
  return {static_cast<uint32_t>(number % size.x), static_cast<uint32_t>(number / size.x % size.y),
          static_cast<uint32_t>(number / size.x / size.y)};
}

uint32_t component(const Size3& size, char name) {
  return name == 'x' ? size.x : name == 'y' ? size.y : size.z;
}

uint32_t special_value(const std::string& name, const Warp& warp, int lane) {
  const Launch& launch = warp.block.launch;
  const std::string family = name.substr(0, name.size() - 2);
  if (family == "%tid") return component(index_in(launch.block, warp.thread(lane)), name.back());
  if (family == "%ntid") return component(launch.block, name.back());
  if (family == "%ctaid") return component(warp.block.index, name.back());
  if (family == "%nctaid") return component(launch.grid, name.back());
  if (name == "%laneid") return lane;
  fail("special register " + name + " is not known");
}

template <class T>
void fill(Warp& warp, int place, T value) {
  std::fill_n(warp.lanes<T>(place), warp_size, value);
}

}  // namespace

thread_local Position position;

void fail(const std::string& message) {
  static std::mutex mutex;
  mutex.lock();  // for ever: the first report is the last
  std::string report = "emulator: " + message + "\n";
  if (position.block) {
    report += "kernel " + position.block->launch.program.text.name + ", block " +
              text_of(position.block->index) + "\n";
  }
  if (position.instruction && position.instruction->statement) {
    char lanes[16];
    snprintf(lanes, sizeof lanes, "%08x", position.lanes);
    report += "warp " + std::to_string(position.warp->number) + ", lanes " + lanes + ", PTX line " +
              std::to_string(position.instruction->statement->line) + ": " +
              position.instruction->statement->text() + "\n";
  }
  fputs(report.c_str(), stderr);
  fflush(stderr);
  _exit(1);
}

void Warp::start(const Program& program, const void* parameters, int threads) {
  program_ = &program;
  registers_.resize(program.register_bytes / sizeof(Line));
  memset(static_cast<void*>(registers_.data()), 0xFF, registers_.size() * sizeof(Line));
  existing = threads >= warp_size ? all_lanes : (1u << threads) - 1;
  exited = at_block_barrier = epoch_ = 0;
  runnable_ = existing;
  meetings_.clear();
  for (int lane = 0; lane < warp_size; ++lane) {
    program_counter[lane] = 0;
    open_copies[lane].clear();
    copy_groups[lane].clear();
  }
  for (const Program::Constant& constant : program.constants) {
    switch (constant.bits) {
      case 1:
        predicate(constant.place) = constant.value ? all_lanes : 0;
        break;
      case 8:
        fill(*this, constant.place, static_cast<uint8_t>(constant.value));
        break;
      case 16:
        fill(*this, constant.place, static_cast<uint16_t>(constant.value));
        break;
      case 32:
        fill(*this, constant.place, static_cast<uint32_t>(constant.value));
        break;
      default:
        fill(*this, constant.place, constant.value);
    }
  }
  for (const Program::ParameterAddress& address : program.parameter_addresses)
    fill(*this, address.place, reinterpret_cast<uint64_t>(parameters) + address.offset);
  for (const Program::SpecialRegister& special : program.special_registers)
    for (int lane = 0; lane < warp_size; ++lane)
      lanes<uint32_t>(special.place)[lane] = special_value(special.name, *this, lane);
}

Actor Warp::actor(int lane) const {
  return {thread(lane), number, block.epoch, epoch_};
}

void Warp::run() {
  while (runnable_) {
    run_lanes(choose_lanes());
    if (block.launch.schedule == Schedule::random && block.random() % 2) return;
  }
}

// Lanes at the earliest place of the program, so that those which parted meet again. They run until they
// reach the place of the next ones.
uint32_t Warp::choose_lanes() {
  uint32_t candidates = runnable_;
  if (block.launch.schedule == Schedule::reverse && candidates & upper_half) candidates &= upper_half;
  if (block.launch.schedule == Schedule::random) {
    const uint32_t part = candidates & block.random();
    if (part) candidates = part;
  }
  int first = INT32_MAX;
  for (int lane = 0; lane < warp_size; ++lane)
    if (candidates >> lane & 1) first = std::min(first, program_counter[lane]);
  uint32_t chosen = 0;
  next_place_ = INT32_MAX;
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(candidates >> lane & 1)) continue;
    if (program_counter[lane] == first)
      chosen |= 1u << lane;
    else
      next_place_ = std::min(next_place_, program_counter[lane]);
  }
  return chosen;
}

void Warp::move(uint32_t lanes, int place) {
  for (int lane = 0; lane < warp_size; ++lane)
    if (lanes >> lane & 1) program_counter[lane] = place;
}

void Warp::run_lanes(uint32_t lanes) {
  int place = program_counter[__builtin_ctz(lanes)];
  while (place < next_place_) {
    const Instruction& instruction = program_->instructions[place];
    uint32_t active = lanes;
    if (instruction.guarded)
      active &= instruction.guard_negated ? ~predicate(instruction.guard) : predicate(instruction.guard);
    if (!active) {
      ++place;
      continue;
    }
    position = {&block, this, &instruction, active};
    ++block.statistics.warp_instructions;
    if (instruction.kind == Kind::plain) {
      instruction.execute(*this, instruction, active);
      ++place;
      continue;
    }
    if (instruction.kind == Kind::branch && active == lanes) {
      place = static_cast<int>(instruction.numbers[0]);
      continue;
    }
    move(lanes & ~active, place + 1);
    switch (instruction.kind) {
      case Kind::branch:
        move(active, static_cast<int>(instruction.numbers[0]));
        return;
      case Kind::exit:
        leave(active);
        return;
      case Kind::block_barrier:
        move(active, place + 1);
        runnable_ &= ~active;
        at_block_barrier |= active;
        block.arrive_at_barrier();
        return;
      default:
        if (!meet(instruction, place, active) || active != lanes) return;
        ++place;  // all of the mask came together and go on together
    }
  }
  move(lanes, place);
}

void Warp::leave(uint32_t lanes) {
  for (int lane = 0; lane < warp_size; ++lane) {
    if (lanes >> lane & 1 && !(open_copies[lane].empty() && copy_groups[lane].empty()))
      fail("a thread ends with asynchronous copies for which it has not waited");
  }
  runnable_ &= ~lanes;
  exited |= lanes;
  block.arrive_at_barrier();
}

// Whether exactly these lanes were to meet. Otherwise they wait, and the last to come executes for all.
bool Warp::meet(const Instruction& instruction, int place, uint32_t lanes) {
  const uint32_t present = existing & ~exited;
  uint32_t mask = all_lanes;
  if (instruction.mask >= 0) {
    mask = this->lanes<uint32_t>(instruction.mask)[__builtin_ctz(lanes)];
    for (int lane = 0; lane < warp_size; ++lane)
      if (lanes >> lane & 1 && this->lanes<uint32_t>(instruction.mask)[lane] != mask)
        fail("lanes with different masks");
  }
  if (mask & ~present) fail("a collective names lanes that do not exist or have ended");
  if (lanes & ~mask) fail("a lane that its own mask does not name");
  if (lanes == mask) {
    instruction.execute(*this, instruction, mask);
    move(mask, place + 1);
    return true;
  }
  runnable_ &= ~lanes;
  move(lanes, place);
  const auto meeting =
      std::find_if(meetings_.begin(), meetings_.end(), [&](const Meeting& m) { return m.mask & mask; });
  if (meeting == meetings_.end()) {
    meetings_.push_back({place, mask, lanes});
    return false;
  }
  if (meeting->program_counter != place || meeting->mask != mask)
    fail("lanes of one warp are at different collectives");
  meeting->arrived |= lanes;
  if (meeting->arrived == mask) {
    meetings_.erase(meeting);
    position.lanes = mask;
    instruction.execute(*this, instruction, mask);
    move(mask, place + 1);
    runnable_ |= mask;
  }
  return false;
}

void Warp::release(uint32_t lanes) {
  runnable_ |= lanes;
  at_block_barrier &= ~lanes;
}

std::string Warp::waiting_places() const {
  std::string text;
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!((existing & ~exited) >> lane & 1)) continue;
    const int place = program_counter[lane] - (at_block_barrier >> lane & 1);
    const std::string line = " " + std::to_string(program_->instructions[place].statement->line);
    if (text.find(line) == std::string::npos) text += line;
  }
  return text.empty() ? "" : "\n  warp " + std::to_string(number) + " at PTX lines" + text;
}

Block::Block(const Launch& launch, uint64_t seed) : launch(launch), shared(launch.shared_bytes), seed_(seed) {
  const int warps = static_cast<int>((launch.block.count() + warp_size - 1) / warp_size);
  warps_.reserve(warps);
  for (int number = 0; number < warps; ++number) warps_.emplace_back(*this, number);
}

void Block::run(uint64_t block_number) {
  index = index_in(launch.grid, block_number);
  position = {this, nullptr, nullptr, 0};
  random.seed(static_cast<uint32_t>(seed_ * 7919 + block_number));
  epoch = 0;
  shared.poison();
  const int threads = static_cast<int>(launch.block.count());
  for (Warp& warp : warps_) warp.start(launch.program, launch.parameters, threads - warp.number * warp_size);
  ++statistics.blocks;
  for (;;) {
    std::vector<Warp*> candidates;
    for (Warp& warp : warps_)
      if (warp.can_run()) candidates.push_back(&warp);
    if (candidates.empty()) break;
    const size_t last = candidates.size() - 1;
    const size_t chosen = launch.schedule == Schedule::forward   ? 0
                          : launch.schedule == Schedule::reverse ? last
                                                                 : random() % (last + 1);
    candidates[chosen]->run();
  }
  std::string waiting;
  for (const Warp& warp : warps_) waiting += warp.waiting_places();
  position.instruction = nullptr;
  if (!waiting.empty()) fail("threads wait for others that will not come:" + waiting);
}

// Threads that have ended count as arrived.
void Block::arrive_at_barrier() {
  int place = -1;
  for (const Warp& warp : warps_)
    if (warp.at_block_barrier != (warp.existing & ~warp.exited)) return;
  for (const Warp& warp : warps_) {
    for (int lane = 0; lane < warp_size; ++lane) {
      if (!(warp.at_block_barrier >> lane & 1)) continue;
      if (place >= 0 && place != warp.program_counter[lane])
        fail("threads of one block are at different barriers");
      place = warp.program_counter[lane];
    }
  }
  if (place < 0) return;
  ++epoch;
  ++statistics.block_barriers;
  for (Warp& warp : warps_) warp.release(warp.at_block_barrier);
}

Statistics run(const Launch& launch, uint64_t seed) {
  const uint64_t blocks = launch.grid.count();
  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (launch.schedule == Schedule::reverse) std::reverse(order.begin(), order.end());
  if (launch.schedule == Schedule::random) std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));

  Statistics total;
  total.launches = 1;
  std::mutex mutex;
  std::atomic<uint64_t> next{0};
  const auto work = [&] {
    Block block(launch, seed);
    for (uint64_t i; (i = next++) < blocks;) block.run(order[i]);
    position = {};
    const std::lock_guard lock(mutex);
    total.add(block.statistics);
  };
  std::vector<std::thread> threads(
      std::min<uint64_t>(std::max(1u, std::thread::hardware_concurrency()), blocks) - 1);
  for (std::thread& thread : threads) thread = std::thread(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return total;
}

}  // namespace emulation

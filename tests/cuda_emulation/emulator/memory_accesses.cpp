#include <algorithm>
#include <cstring>

#include "lanewise.h"

// Loads, stores and asynchronous copies.
namespace emulation {
namespace {

enum class Space { parameter, global, shared, generic };

// Bytes of global memory that a warp asks for, and the 32-byte sectors in which they lie.
struct Traffic {
  uint64_t bytes = 0, sectors = 0;

  Traffic(const uint64_t* addresses, const int* sizes, uint32_t lanes) {
    uint64_t touched[warp_size * 2];
    int count = 0;
    for (int lane = 0; lane < warp_size; ++lane) {
      if (!(lanes >> lane & 1) || sizes[lane] == 0) continue;
      bytes += sizes[lane];
      for (uint64_t sector = addresses[lane] / 32; sector <= (addresses[lane] + sizes[lane] - 1) / 32;
           ++sector)
        touched[count++] = sector;
    }
    std::sort(touched, touched + count);
    sectors = std::unique(touched, touched + count) - touched;
  }
};

void count_shared_access(Warp& warp, const uint32_t* addresses, uint32_t lanes, int bytes) {
  const SharedMemory::Passes passes = SharedMemory::passes(addresses, lanes, bytes);
  warp.block.statistics.shared_access_passes += passes.needed;
  warp.block.statistics.shared_access_passes_ideal += passes.ideal;
}

// The addresses of a warp's accesses of `bytes` each, and the host's memory behind them.
template <Space space, int bytes, bool writes>
struct Accesses {
  unsigned char* memory[warp_size];

  Accesses(Warp& warp, const Instruction& instruction, int base_place, uint32_t lanes) {
    uint32_t shared_lanes = space == Space::shared ? lanes : 0;
    uint32_t shared_addresses[warp_size];
    uint64_t addresses[warp_size];
    int sizes[warp_size];
    const uint64_t shared_start = reinterpret_cast<uint64_t>(warp.block.shared.data());
    for (int lane = 0; lane < warp_size; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      if constexpr (space == Space::shared) {
        shared_addresses[lane] =
            warp.lanes<uint32_t>(base_place)[lane] + static_cast<uint32_t>(instruction.numbers[0]);
      } else {
        addresses[lane] = warp.lanes<uint64_t>(base_place)[lane] + instruction.numbers[0];
        if (space == Space::generic &&
            addresses[lane] - shared_start < static_cast<uint64_t>(warp.block.shared.bytes())) {
          shared_addresses[lane] = static_cast<uint32_t>(addresses[lane] - shared_start);
          shared_lanes |= 1u << lane;
        }
      }
    }
    for (int lane = 0; lane < warp_size; ++lane) {
      sizes[lane] = 0;
      if (!(lanes >> lane & 1)) continue;
      if (shared_lanes >> lane & 1) {
        memory[lane] = writes ? warp.block.shared.write(shared_addresses[lane], bytes, warp.actor(lane))
                              : const_cast<unsigned char*>(
                                    warp.block.shared.read(shared_addresses[lane], bytes, warp.actor(lane)));
      } else {
        if (addresses[lane] % bytes != 0)
          fail("unaligned access of " + std::to_string(bytes) + " bytes to global memory");
        memory[lane] = reinterpret_cast<unsigned char*>(addresses[lane]);
        sizes[lane] = bytes;
      }
    }
    if (shared_lanes) count_shared_access(warp, shared_addresses, shared_lanes, bytes);
    if (space == Space::parameter || shared_lanes == lanes) return;
    const Traffic traffic(addresses, sizes, lanes);
    Statistics& statistics = warp.block.statistics;
    (writes ? statistics.global_bytes_written : statistics.global_bytes_read) += traffic.bytes;
    (writes ? statistics.global_sectors_written : statistics.global_sectors_read) += traffic.sectors;
  }
};

template <Space space, class T, int count>
void load(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  const Accesses<space, sizeof(T) * count, false> accesses(warp, instruction, instruction.places[count],
                                                           lanes);
  for (int i = 0; i < count; ++i) {
    T* result = warp.lanes<T>(instruction.places[i]);
    for (int lane = 0; lane < warp_size; ++lane)
      if (lanes >> lane & 1) memcpy(result + lane, accesses.memory[lane] + i * sizeof(T), sizeof(T));
  }
}

template <Space space, class T, int count>
void store(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  const Accesses<space, sizeof(T) * count, true> accesses(warp, instruction, instruction.places[0], lanes);
  for (int i = 0; i < count; ++i) {
    const T* source = warp.lanes<T>(instruction.places[1 + i]);
    for (int lane = 0; lane < warp_size; ++lane)
      if (lanes >> lane & 1) memcpy(accesses.memory[lane] + i * sizeof(T), source + lane, sizeof(T));
  }
}

template <Space space, class T, int count>
void add_width(Opcodes& opcodes, const std::string& space_name) {
  constexpr int bits = 8 * sizeof(T);
  const std::string vector = count == 1 ? "" : ".v" + std::to_string(count);
  const std::string address = space == Space::shared ? "u32" : "u64";
  for (const char letter : std::string("bsuf")) {
    const std::string type = letter + std::to_string(bits);
    const Opcode loading{
        load<space, T, count>, Kind::plain, std::vector<std::string>(count, type), {address}, false};
    for (const std::string cache : {"", ".nc", ".ca", ".cg", ".cs", ".lu", ".cv"})
      opcodes["ld" + space_name + cache + vector + "." + type] = loading;
    opcodes["ld.volatile" + space_name + vector + "." + type] = loading;
    Opcode storing{store<space, T, count>, Kind::plain, {}, {address}, false};
    storing.sources.insert(storing.sources.end(), count, type);
    for (const std::string cache : {"", ".wb", ".cg", ".cs", ".wt"})
      opcodes["st" + space_name + cache + vector + "." + type] = storing;
    opcodes["st.volatile" + space_name + vector + "." + type] = storing;
  }
}

template <Space space>
void add_space(Opcodes& opcodes, const std::string& name) {
  for_types(Types<uint8_t, uint16_t, uint32_t, uint64_t>(), [&]<class T>() {
    add_width<space, T, 1>(opcodes, name);
    add_width<space, T, 2>(opcodes, name);
    if constexpr (sizeof(T) <= 4) add_width<space, T, 4>(opcodes, name);
  });
}

// Sources: target, source, size and, if there, how many bytes of it are copied.
template <bool has_bytes>
void begin_copies(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  uint32_t targets[warp_size];
  uint64_t sources[warp_size];
  int sizes[warp_size], size = 0;
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    targets[lane] =
        warp.lanes<uint32_t>(instruction.places[0])[lane] + static_cast<uint32_t>(instruction.numbers[0]);
    sources[lane] = warp.lanes<uint64_t>(instruction.places[1])[lane] + instruction.numbers[1];
    size = static_cast<int>(warp.lanes<uint32_t>(instruction.places[2])[lane]);
    sizes[lane] = has_bytes ? static_cast<int>(warp.lanes<uint32_t>(instruction.places[3])[lane]) : size;
    if (sizes[lane] < 0 || sizes[lane] > size) fail("cp.async copies more bytes than it has room for");
    if (sources[lane] % size != 0) fail("cp.async from an unaligned address");
    const AsyncCopy copy{targets[lane], reinterpret_cast<const unsigned char*>(sources[lane]), size,
                         sizes[lane]};
    warp.block.shared.begin(copy, warp.actor(lane));
    warp.open_copies[lane].push_back(copy);
  }
  count_shared_access(warp, targets, lanes, size);
  const Traffic traffic(sources, sizes, lanes);
  warp.block.statistics.global_bytes_read += traffic.bytes;
  warp.block.statistics.global_sectors_read += traffic.sectors;
}

void close_group(Warp& warp, const Instruction&, uint32_t lanes) {
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    warp.copy_groups[lane].push_back(std::move(warp.open_copies[lane]));
    warp.open_copies[lane].clear();
  }
}

// Copies are made as late as they may be: here, for all but the latest groups.
void finish_groups(Warp& warp, uint32_t lanes, size_t left) {
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    std::vector<std::vector<AsyncCopy>>& groups = warp.copy_groups[lane];
    const size_t finished = groups.size() > left ? groups.size() - left : 0;
    for (size_t i = 0; i < finished; ++i)
      for (const AsyncCopy& copy : groups[i]) warp.block.shared.finish(copy, warp.actor(lane));
    groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(finished));
  }
}

void wait_for_groups(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  finish_groups(warp, lanes, warp.lanes<uint32_t>(instruction.places[0])[__builtin_ctz(lanes)]);
}

void wait_for_all(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  close_group(warp, instruction, lanes);
  finish_groups(warp, lanes, 0);
}

// Between generic addresses and those of shared memory
template <bool to_shared>
void convert_address(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  const uint64_t start = reinterpret_cast<uint64_t>(warp.block.shared.data());
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const uint64_t address = warp.lanes<uint64_t>(instruction.places[1])[lane];
    warp.lanes<uint64_t>(instruction.places[0])[lane] = to_shared ? address - start : address + start;
  }
}

void move_address(Warp& warp, const Instruction& instruction, uint32_t lanes) {
  for (int lane = 0; lane < warp_size; ++lane)
    if (lanes >> lane & 1)
      warp.lanes<uint64_t>(instruction.places[0])[lane] = warp.lanes<uint64_t>(instruction.places[1])[lane];
}

}  // namespace

void add_memory_accesses(Opcodes& opcodes) {
  add_space<Space::parameter>(opcodes, ".param");
  add_space<Space::global>(opcodes, ".global");
  add_space<Space::shared>(opcodes, ".shared");
  add_space<Space::generic>(opcodes, "");
  for (const std::string cache : {"ca", "cg"}) {
    const std::string name = "cp.async." + cache + ".shared.global";
    opcodes[name + "/3"] = {begin_copies<false>, Kind::plain, {}, {"u32", "u64", "u32"}, false};
    opcodes[name + "/4"] = {begin_copies<true>, Kind::plain, {}, {"u32", "u64", "u32", "u32"}, false};
  }
  opcodes["cp.async.commit_group"] = {close_group, Kind::plain, {}, {}, false};
  opcodes["cp.async.wait_group"] = {wait_for_groups, Kind::plain, {}, {"u32"}, false};
  opcodes["cp.async.wait_all"] = {wait_for_all, Kind::plain, {}, {}, false};
  for (const std::string space : {"global", "param", "const"}) {
    opcodes["cvta.to." + space + ".u64"] =
        opcodes["cvta." + space + ".u64"] = {move_address, Kind::plain, {"u64"}, {"u64"}, false};
  }
  opcodes["cvta.to.shared.u64"] = {convert_address<true>, Kind::plain, {"u64"}, {"u64"}, false};
  opcodes["cvta.shared.u64"] = {convert_address<false>, Kind::plain, {"u64"}, {"u64"}, false};
}

}  // namespace emulation

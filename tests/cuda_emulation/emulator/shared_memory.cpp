#include "shared_memory.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "guarded_memory.h"
#include "machine.h"

namespace emulation {
namespace {

constexpr int cell_bytes = 2, nobody = -1, several = -2;

std::string place(uint32_t address, int bytes) {
  return std::to_string(bytes) + " bytes at " + std::to_string(address) + " of shared memory";
}

}  // namespace

SharedMemory::SharedMemory(int bytes)
    : bytes_(bytes),
      data_(static_cast<unsigned char*>(allocate_guarded(bytes))),
      cells_((bytes + 1) / cell_bytes) {}

SharedMemory::~SharedMemory() {
  free_guarded(data_);
}

void SharedMemory::poison() {
  memset(data_, 0xFF, bytes_);
  std::fill(cells_.begin(), cells_.end(), Cell{nobody, nobody, nobody, false, 0, 0, 0, 0});
}

void SharedMemory::check_place(uint32_t address, int bytes) const {
  if (int64_t{address} + bytes > bytes_)
    fail("access out of bounds: " + place(address, bytes) + ", which has " + std::to_string(bytes_));
  if (address % bytes != 0) fail("unaligned access: " + place(address, bytes));
}

const unsigned char* SharedMemory::read(uint32_t address, int bytes, const Actor& actor) {
  check_place(address, bytes);
  for (uint32_t i = address / cell_bytes; i <= (address + bytes - 1) / cell_bytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.copying) fail("read before the end of the asynchronous copy to it: " + place(address, bytes));
    const bool ordered = cell.writer == nobody || cell.writer == actor.thread ||
                         cell.write_block_epoch != actor.block_epoch ||
                         (cell.writer / warp_size == actor.warp && cell.write_warp_epoch != actor.warp_epoch);
    if (!ordered) {
      fail("race: thread " + std::to_string(actor.thread) + " reads " + place(address, bytes) +
           ", which thread " + std::to_string(cell.writer) + " wrote, with no barrier between");
    }
    const bool first = cell.reader == nobody || cell.read_block_epoch != actor.block_epoch;
    cell.reader = first || cell.reader == actor.thread ? actor.thread : several;
    cell.reader_warp = first || cell.reader_warp == actor.warp ? actor.warp : several;
    cell.read_block_epoch = actor.block_epoch;
    cell.read_warp_epoch = actor.warp_epoch;
  }
  return data_ + address;
}

void SharedMemory::note_write(uint32_t address, int bytes, const Actor& actor, bool copying) {
  for (uint32_t i = address / cell_bytes; i <= (address + bytes - 1) / cell_bytes; ++i) {
    Cell& cell = cells_[i];
    const bool after_writer =
        cell.writer == nobody || cell.writer == actor.thread || cell.write_block_epoch != actor.block_epoch ||
        (cell.writer / warp_size == actor.warp && cell.write_warp_epoch != actor.warp_epoch);
    const bool after_readers = cell.reader == nobody || cell.reader == actor.thread ||
                               cell.read_block_epoch != actor.block_epoch ||
                               (cell.reader_warp == actor.warp && cell.read_warp_epoch != actor.warp_epoch);
    if (!after_writer || !after_readers) {
      const int other = after_writer ? cell.reader : cell.writer;
      fail("race: thread " + std::to_string(actor.thread) + " writes " + place(address, bytes) + ", which " +
           (other == several ? "several threads" : "thread " + std::to_string(other)) +
           (after_writer ? " read" : " wrote") + ", with no barrier between");
    }
    cell.writer = static_cast<int16_t>(actor.thread);
    cell.write_block_epoch = actor.block_epoch;
    cell.write_warp_epoch = actor.warp_epoch;
    cell.reader = cell.reader_warp = nobody;
    cell.copying = copying;
  }
}

unsigned char* SharedMemory::write(uint32_t address, int bytes, const Actor& actor) {
  check_place(address, bytes);
  note_write(address, bytes, actor, false);
  return data_ + address;
}

void SharedMemory::begin(const AsyncCopy& copy, const Actor& actor) {
  check_place(copy.target, copy.size);
  note_write(copy.target, copy.size, actor, true);
  memset(data_ + copy.target, 0xFF, copy.size);
}

void SharedMemory::finish(const AsyncCopy& copy, const Actor& actor) {
  note_write(copy.target, copy.size, actor, false);
  memcpy(data_ + copy.target, copy.source, copy.bytes);
  memset(data_ + copy.target + copy.bytes, 0, copy.size - copy.bytes);
}

SharedMemory::Passes SharedMemory::passes(const uint32_t* addresses, uint32_t lanes, int bytes) {
  // 8-byte accesses go by half warps, 16-byte accesses by quarters.
  const int group = bytes == 16 ? 8 : bytes == 8 ? 16 : 32;
  Passes passes{0, 0};
  for (int first = 0; first < warp_size; first += group) {
    uint32_t words[32][32];
    int counts[32] = {}, most = 0;
    bool any = false;
    for (int lane = first; lane < first + group; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      any = true;
      for (uint32_t word = addresses[lane] / 4; word <= (addresses[lane] + bytes - 1) / 4; ++word) {
        const int bank = word % 32;
        uint32_t* end = words[bank] + counts[bank];
        if (std::find(words[bank], end, word) != end) continue;
        *end = word;
        most = std::max(most, ++counts[bank]);
      }
    }
    passes.needed += most;
    passes.ideal += any;
  }
  return passes;
}

}  // namespace emulation

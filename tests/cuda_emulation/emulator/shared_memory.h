#pragma once
#include <cstdint>
#include <vector>

// The shared memory of one block. It finds out-of-bounds and unaligned accesses, reads of what an
// asynchronous copy has yet to bring, and races: two accesses by different threads, one of them a write, with
// no barrier between them. What has never been written is 0xFF, which is NaN in every floating-point type.
namespace emulation {

// A thread, and the barriers of its block and of its warp that it has passed.
struct Actor {
  int thread, warp;
  uint32_t block_epoch, warp_epoch;
};

// A cp.async: `bytes` from global memory, then zeros up to `size`.
struct AsyncCopy {
  uint32_t target;
  const unsigned char* source;
  int size, bytes;
};

class SharedMemory {
 public:
  explicit SharedMemory(int bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void poison();

  // The memory behind an address, after all checks.
  const unsigned char* read(uint32_t address, int bytes, const Actor& actor);
  unsigned char* write(uint32_t address, int bytes, const Actor& actor);

  // From its beginning to its end the target of a copy is 0xFF and must not be read.
  void begin(const AsyncCopy& copy, const Actor& actor);
  void finish(const AsyncCopy& copy, const Actor& actor);

  unsigned char* data() const { return data_; }
  int bytes() const { return bytes_; }

  // Turns that the 32 banks need for the accesses of a warp, `bytes` each, and how few would do.
  struct Passes {
    int needed, ideal;
  };
  static Passes passes(const uint32_t* addresses, uint32_t lanes, int bytes);

 private:
  // Two bytes, the smallest thing that kernels share.
  struct Cell {
    int16_t writer, reader, reader_warp;  // below 0: nobody, or several readers
    bool copying;
    uint32_t write_block_epoch, write_warp_epoch, read_block_epoch, read_warp_epoch;
  };

  void check_place(uint32_t address, int bytes) const;
  void note_write(uint32_t address, int bytes, const Actor& actor, bool copying);

  int bytes_;
  unsigned char* data_;
  std::vector<Cell> cells_;
};

}  // namespace emulation

#include "guarded_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#include "machine.h"

namespace emulation {
namespace {

constexpr unsigned char canary = 0xFF;  // an element of NaN, to those who read it

// Stands before the memory, at the start of its pages.
struct Header {
  uint64_t magic;
  size_t bytes, mapped;  // mapped: without the guard page
};
constexpr uint64_t magic = 0x64657264617567ull;

size_t round_up(size_t value, size_t step) {
  return (value + step - 1) / step * step;
}

size_t page_bytes() {
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

void* allocate_guarded(size_t bytes) {
  const size_t page = page_bytes(), padded = round_up(bytes ? bytes : 1, 16);
  const size_t mapped = round_up(padded + sizeof(Header), page);
  void* pages = mmap(nullptr, mapped + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  unsigned char* start = static_cast<unsigned char*>(pages);
  mprotect(start + mapped, page, PROT_NONE);
  memset(start, canary, mapped);
  const Header header{magic, bytes, mapped};
  memcpy(start, &header, sizeof header);
  return start + mapped - padded;
}

void free_guarded(void* memory) {
  if (!memory) return;
  const size_t page = page_bytes();
  unsigned char* data = static_cast<unsigned char*>(memory);
  // The header is in the first page of the mapping: pages before the memory's own hold canaries alone.
  unsigned char* first_page = data - reinterpret_cast<uintptr_t>(data) % page;
  Header header;
  memcpy(&header, first_page, sizeof header);
  if (header.magic != magic) {
    first_page -= page;
    memcpy(&header, first_page, sizeof header);
  }
  const unsigned char* end = first_page + header.mapped;
  for (const unsigned char* byte = first_page + sizeof header; byte < data; ++byte)
    if (*byte != canary) fail("bytes before an allocation were overwritten");
  for (const unsigned char* byte = data + header.bytes; byte < end; ++byte)
    if (*byte != canary) fail("bytes behind an allocation were overwritten");
  munmap(first_page, header.mapped + page);
}

}  // namespace emulation

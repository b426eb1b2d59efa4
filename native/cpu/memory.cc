#include "cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>

#include "core/error.h"

namespace dit::cpu {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

// The number that a file holds; `otherwise` where there is no such file or it says "max".
size_t numberIn(const char* path, size_t otherwise) {
  std::ifstream file(path);
  size_t number = 0;
  return file >> number ? number : otherwise;
}

size_t roundUp(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

Block::Block(size_t bytes) {
  DIT_CHECK(bytes < SIZE_MAX / 2, ErrorCode::Oom, "cannot allocate ", bytes, " bytes");
  const size_t size = roundUp(bytes > 0 ? bytes : 1, kPage);
  // Mapped with room to begin at a huge page; what is before and after goes back.
  const size_t room = size >= kHugePage ? kHugePage : 0;
  void* mapped =
      mmap(nullptr, size + room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  DIT_CHECK(mapped != MAP_FAILED, ErrorCode::Oom, "cannot allocate ", bytes,
            " bytes of memory: free some, or use a smaller model or batch, or precision 'bf16'");
  char* begin = static_cast<char*>(mapped);
  if (room > 0) {
    const size_t before =
        roundUp(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin);
    if (before > 0) munmap(begin, before);
    if (before < room) munmap(begin + before + size, room - before);
    begin += before;
#ifdef MADV_HUGEPAGE
    // A wish: a kernel without huge pages refuses it, and the block works all the same.
    madvise(begin, size, MADV_HUGEPAGE);
#endif
  }
  data_ = begin;
  bytes_ = size;
}

Block::~Block() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

size_t availableMemory() {
  size_t available = SIZE_MAX;
  std::ifstream meminfo("/proc/meminfo");
  std::string name, unit;
  for (size_t kibibytes = 0; meminfo >> name >> kibibytes; std::getline(meminfo, unit)) {
    if (name == "MemAvailable:") available = kibibytes << 10;
  }
  const size_t limit = numberIn("/sys/fs/cgroup/memory.max", SIZE_MAX);
  const size_t used = numberIn("/sys/fs/cgroup/memory.current", 0);
  return std::min(available, limit > used ? limit - used : 0);
}

}  // namespace dit::cpu

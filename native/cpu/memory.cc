#include "cpu/memory.h"

#include <sys/mman.h>

#include <cstdint>

#include "core/error.h"

namespace dit::cpu {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

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

}  // namespace dit::cpu

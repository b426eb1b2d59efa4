#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <new>
#include <utility>
#include <vector>

#include "simt.h"

namespace dit::simt {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;       // of what cudaMalloc gives
constexpr unsigned char kPoison = 0xff;  // NaN in every floating type
constexpr unsigned char kCanary = 0xa5;
constexpr size_t kMostShared = 227 << 10;  // of Hopper

size_t roundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Pages with a guard page on each side; the data ends at the second one, up to the alignment.
class Region {
 public:
  Region() = default;
  explicit Region(size_t bytes) : bytes_(bytes) {
    const size_t padded = roundUp(bytes, kAlignment);
    mapped_ = roundUp(padded, kPage) + 2 * kPage;
    void* const memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(memory);
    if (mprotect(base_, kPage, PROT_NONE) != 0 ||
        mprotect(base_ + mapped_ - kPage, kPage, PROT_NONE) != 0) {
      throw std::bad_alloc();
    }
    data_ = base_ + mapped_ - kPage - padded;
    std::memset(base_ + kPage, kCanary, static_cast<size_t>(data_ - base_) - kPage);
    std::memset(data_, kPoison, bytes);
    std::memset(data_ + bytes, kCanary, padded - bytes);
  }
  Region(Region&& other) noexcept { swap(other); }
  Region& operator=(Region&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Region() {
    if (base_) munmap(base_, mapped_);
  }

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool contains(const void* address, size_t bytes) const {
    const char* const at = static_cast<const char*>(address);
    return at >= data_ && at + bytes <= data_ + bytes_;
  }
  bool isGuard(const void* address) const {
    const char* const at = static_cast<const char*>(address);
    return (at >= base_ && at < base_ + kPage) ||
           (at >= base_ + mapped_ - kPage && at < base_ + mapped_);
  }
  bool covers(const void* address) const {
    return address >= base_ && address < base_ + mapped_ && !isGuard(address);
  }
  void protect(int how) const {
    if (mprotect(base_ + kPage, mapped_ - 2 * kPage, how) != 0) throw std::bad_alloc();
  }
  // Neither side was written to.
  bool whole() const {
    const auto untouched = [](const char* from, const char* to) {
      for (; from < to; from++) {
        if (static_cast<unsigned char>(*from) != kCanary) return false;
      }
      return true;
    };
    return untouched(base_ + kPage, data_) && untouched(data_ + bytes_, base_ + mapped_ - kPage);
  }
  std::string relation(const void* address, const char* what) const {
    const auto offset = static_cast<const char*>(address) - data_;
    const auto size = static_cast<ptrdiff_t>(bytes_);
    const std::string of = std::string(" of ") + what + " of " + std::to_string(size) + " bytes";
    if (offset < 0) return std::to_string(-offset) + " bytes before the begin" + of;
    return std::to_string(offset - size) + " bytes after the end" + of;
  }

 private:
  void swap(Region& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
  }

  char* base_ = nullptr;
  char* data_ = nullptr;
  size_t bytes_ = 0, mapped_ = 0;
};

std::map<const void*, Region> regions;  // by the address of the data
// By size, of which kernels ask for few, and rank.
std::map<std::pair<size_t, int>, Region> sharedRegions;
std::vector<Region*> shared;  // in use, by rank
size_t allocated = 0;
bool reachable = true;

// The allocation that begins at or before the address.
const Region* before(const void* address) {
  auto at = regions.upper_bound(address);
  return at == regions.begin() ? nullptr : &std::prev(at)->second;
}

const Region* after(const void* address) {
  auto at = regions.upper_bound(address);
  return at == regions.end() ? nullptr : &at->second;
}

}  // namespace

void* allocate(size_t bytes) {
  if (allocated + bytes > kDeviceBytes) return nullptr;
  Region region(bytes);
  void* const data = region.data();
  allocated += bytes;
  regions.emplace(data, std::move(region));
  return data;
}

bool release(void* memory) {
  const auto at = regions.find(memory);
  if (at == regions.end()) return false;
  const bool whole = at->second.whole();
  allocated -= at->second.bytes();
  regions.erase(at);
  return whole;
}

size_t allocatedBytes() { return allocated; }

bool isGuard(const void* address) {
  const auto guards = [=](const Region* region) { return region && region->isGuard(address); };
  return guards(before(address)) || guards(after(address)) ||
         std::any_of(shared.begin(), shared.end(), guards);
}

std::string nearest(const void* address) {
  for (const Region* region : shared) {
    if (region->isGuard(address)) return region->relation(address, "shared memory");
  }
  for (const Region* region : {before(address), after(address)}) {
    if (region && region->isGuard(address)) return region->relation(address, "an allocation");
  }
  return "at no allocation";
}

void setInReach(bool inReach) {
  if (reachable == inReach) return;
  reachable = inReach;
  for (const auto& [data, region] : regions) {
    region.protect(inReach ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
}

bool isOutOfReach(const void* address) {
  const auto covers = [=](const Region* region) { return region && region->covers(address); };
  return !reachable && (covers(before(address)) || covers(after(address)));
}

void poisonShared(int rank, size_t bytes) {
  if (bytes > kMostShared) fault("more shared memory than a block can have");
  const auto key = std::make_pair(bytes, rank);
  auto at = sharedRegions.find(key);
  if (at == sharedRegions.end()) at = sharedRegions.emplace(key, Region(bytes)).first;
  shared.resize(static_cast<size_t>(std::max(clusterSize(), rank + 1)));
  shared[static_cast<size_t>(rank)] = &at->second;
  std::memset(at->second.data(), kPoison, bytes);
}

bool sharedIsWhole(int rank) { return shared[static_cast<size_t>(rank)]->whole(); }

namespace {

const Region& own() { return *shared[static_cast<size_t>(clusterRank())]; }

}  // namespace

char* sharedMemory() { return own().data(); }

void checkShared(const void* address, size_t bytes, const char* what) {
  if (!own().contains(address, bytes)) fault(std::string(what) + " outside of shared memory");
}

void checkGlobal(const void* address, size_t bytes, const char* what) {
  requireWait(what);
  const Region* const region = before(address);
  if (!region || !region->contains(address, bytes)) {
    fault(std::string(what) + " outside of an allocation");
  }
}

}  // namespace dit::simt

// Hopper's instructions: barriers in shared memory, boxes of tensors, products of a warpgroup.
#include "ptx_hopper_host.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <deque>
#include <map>
#include <memory>

namespace dit::cuda {

namespace {

using simt::kMembers;

// The permutation of the swizzles: of an address, the bits that number pieces of 16 bytes within a
// row are combined with those that number rows of 128 bytes.
uint32_t swizzled(uint32_t address, uint32_t rowBytes) {
  if (rowBytes == 0) return address;
  return address ^ ((address >> 7 & (rowBytes / 16 - 1)) << 4);
}

char* sharedAt(uint32_t address) {
  return simt::sharedMemory() + (address - sharedAddress(simt::sharedMemory()));
}

// ---------------------------------------------------------------- barriers

struct Mbarrier {
  int arrivals = 0, missing = 0;
  int64_t bytes = 0;  // to come, or negative: that came early
  uint64_t phase = 0;

  void advance() {
    if (missing > 0 || bytes != 0) return;
    missing = arrivals;
    phase++;
  }
};

struct Mbarriers {
  std::map<const uint64_t*, std::unique_ptr<Mbarrier>> all;
};

Mbarrier& mbarrier(const uint64_t* barrier) {
  auto& all = simt::blockState<Mbarriers>().all;
  const auto at = all.find(barrier);
  if (at == all.end()) simt::fault("an mbarrier that was not initialised");
  return *at->second;
}

// ---------------------------------------------------------------- products

struct Product {
  int n = 0;
  WarpgroupProduct of[kMembers];
};

// What a warpgroup has asked for, group by group; the last is not committed yet.
struct Products {
  std::deque<std::vector<Product>> groups = {{}};
  // The accumulators under way: the true values, while the registers hold NaN.
  struct Accumulator {
    float* d[kMembers];
    int n;
    std::vector<float> values;  // [kMembers, n / 2]
  };
  std::vector<Accumulator> accumulators;
};

struct Warpgroups {
  std::map<int, Products> all;
};

Products& products() {
  return simt::blockState<Warpgroups>().all[simt::position().linear / kMembers];
}

Products::Accumulator* find(Products& all, const float* d) {
  for (auto& accumulator : all.accumulators) {
    if (accumulator.d[0] == d) return &accumulator;
  }
  return nullptr;
}

// TF32 as wgmma sees it: without the lower bits, whatever they are.
float truncated(uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffu); }

// An operand in shared memory, as its descriptor says: element (i, k), where i is the row of a or
// the column of b.
class Operand {
 public:
  Operand(uint64_t descriptor, bool transposed, bool tf32 = false)
      : transposed_(transposed), tf32_(tf32) {
    const auto field = [&](int begin) {
      return static_cast<uint32_t>(descriptor >> begin & 0x3fff) << 4;
    };
    start_ = field(0);
    leading_ = field(16);
    stride_ = field(32);
    const auto swizzle = static_cast<int>(descriptor >> 62);
    if (swizzle == 0) simt::fault("wgmma: the emulator knows swizzled operands only");
    width_ = 256u >> swizzle;  // 128, 64, 32
    if ((descriptor >> 49 & 7) != 0) simt::fault("wgmma: the emulator knows no base offset");
  }

  float at(int i, int k) const {
    const auto row = static_cast<uint32_t>(i), column = static_cast<uint32_t>(k);
    uint32_t offset = 0;
    if (transposed_) {
      const uint32_t perRow = width_ / 2;
      offset =
          row / perRow * leading_ + row % perRow * 2 + column / 8 * stride_ + column % 8 * width_;
    } else {
      offset = row / 8 * stride_ + row % 8 * width_ + column * (tf32_ ? 4 : 2);
    }
    const char* const address = sharedAt(swizzled(start_ + offset, width_));
    if (tf32_) {
      simt::checkShared(address, 4, "wgmma reads");
      uint32_t bits;
      std::memcpy(&bits, address, sizeof(bits));
      return truncated(bits);
    }
    simt::checkShared(address, 2, "wgmma reads");
    uint16_t bits;
    std::memcpy(&bits, address, sizeof(bits));
    return bf16ToFloat(bits);
  }

 private:
  bool transposed_, tf32_;
  uint32_t start_, leading_, stride_, width_;
};

constexpr int kRows = 64;

void multiply(const Product& product, Products::Accumulator& into) {
  const WarpgroupProduct& first = product.of[0];
  const int n = product.n, depth = first.tf32 ? 8 : 16;
  std::vector<float> a(static_cast<size_t>(kRows * depth)), b(static_cast<size_t>(n * depth));
  const auto rowOf = [](int thread, int half) {
    return thread / 32 * 16 + thread % 32 / 4 + 8 * half;
  };
  if (first.fromRegisters) {
    for (int thread = 0; thread < kMembers; thread++) {
      const int q = thread % 4;
      const WarpgroupProduct& own = product.of[thread];
      for (int i = 0; i < 4; i++) {
        if (own.held && own.held[i] != own.a[i]) {
          simt::fault("wgmma: registers of a were written before the product's end");
        }
        if (first.tf32) {
          a[static_cast<size_t>(rowOf(thread, i % 2) * depth + q + 4 * (i / 2))] =
              truncated(own.a[i]);
          continue;
        }
        for (int j = 0; j < 2; j++) {
          const uint32_t pair = own.a[i];
          a[static_cast<size_t>(rowOf(thread, i % 2) * depth + 2 * q + j + 8 * (i / 2))] =
              bf16ToFloat(static_cast<uint16_t>(pair >> (16 * j)));
        }
      }
    }
  } else {
    const Operand operand(first.descriptorA, first.transposeA);
    for (int i = 0; i < kRows; i++) {
      for (int k = 0; k < depth; k++) a[static_cast<size_t>(i * depth + k)] = operand.at(i, k);
    }
  }
  const Operand operand(first.descriptorB, first.transposeB, first.tf32);
  for (int i = 0; i < n; i++) {
    for (int k = 0; k < depth; k++) b[static_cast<size_t>(k * n + i)] = operand.at(i, k);
  }
  std::vector<float> sums(static_cast<size_t>(n));
  const simt::TensorCore core = first.tf32 ? simt::tensorCore().forTf32() : simt::tensorCore();
  for (int row = 0; row < kRows; row++) {
    const auto at = [&](int column) -> float& {
      const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
      const int i = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
      return into.values[static_cast<size_t>(thread * (n / 2) + i)];
    };
    for (int j = 0; j < n; j++) sums[static_cast<size_t>(j)] = first.accumulate ? at(j) : 0.0f;
    simt::addProducts(core, sums.data(), &a[static_cast<size_t>(row * depth)], b.data(), n, depth);
    for (int j = 0; j < n; j++) at(j) = sums[static_cast<size_t>(j)];
  }
}

// The box to the shared memory of the current block.
void copyBox(uint32_t address, const CUtensorMap& tensor,
             const std::array<int64_t, CUtensorMap::kRank>& begin) {
  size_t numbers = 1;
  for (uint32_t d = 0; d < tensor.rank; d++) numbers *= tensor.box[d];
  for (size_t i = 0; i < numbers; i++) {
    bool inside = true;
    const char* from = tensor.base;
    size_t rest = i;
    for (uint32_t d = 0; d < tensor.rank; d++) {
      const int64_t at = begin[d] + static_cast<int64_t>(rest % tensor.box[d]);
      rest /= tensor.box[d];
      inside = inside && at >= 0 && at < static_cast<int64_t>(tensor.size[d]);
      from += at * static_cast<int64_t>(tensor.stride[d]);
    }
    const auto offset = static_cast<uint32_t>(i * tensor.elementBytes);
    char* const to = sharedAt(swizzled(address + offset, tensor.swizzleBytes));
    if (inside) {
      simt::checkGlobal(from, tensor.elementBytes, "TMA reads");
      std::memcpy(to, from, tensor.elementBytes);
    } else {
      std::memset(to, 0, tensor.elementBytes);
    }
  }
}

}  // namespace

void mbarrierInit(uint64_t* barrier, int arrivals) {
  simt::checkShared(barrier, sizeof(*barrier), "an mbarrier");
  auto& slot = simt::blockState<Mbarriers>().all[barrier];
  slot = std::make_unique<Mbarrier>();
  slot->arrivals = slot->missing = arrivals;
}

void mbarrierArriveExpect(uint64_t* barrier, int bytes) {
  mbarrier(barrier).bytes += bytes;
  mbarrierArrive(barrier);
}

void mbarrierArrive(uint64_t* barrier) {
  Mbarrier& b = mbarrier(barrier);
  if (b.missing == 0) simt::fault("more arrivals at an mbarrier than it was initialised for");
  b.missing--;
  b.advance();
}

void mbarrierArriveAt(uint64_t* barrier, int rank) {
  const auto offset = reinterpret_cast<char*>(barrier) - simt::sharedMemory();
  simt::inBlock(
      rank, [=] { mbarrierArrive(reinterpret_cast<uint64_t*>(simt::sharedMemory() + offset)); });
}

void mbarrierWait(uint64_t* barrier, int parity) {
  const Mbarrier& b = mbarrier(barrier);
  while (static_cast<int>(b.phase % 2) == parity) {
    simt::waitForChange(&b.phase, b.phase, "an mbarrier");
  }
}

void loadBox(void* shared, const CUtensorMap* map, uint64_t* barrier, int rank, int x, int y, int z,
             int w, uint32_t blocks) {
  simt::requireWait("TMA reads");
  const CUtensorMap tensor = *map;
  if (static_cast<int>(tensor.rank) != rank) simt::fault("TMA: a map of another rank");
  const uint32_t rowBytes = tensor.box[0] * tensor.elementBytes;
  size_t numbers = 1;
  for (int d = 0; d < rank; d++) numbers *= tensor.box[d];
  const size_t bytes = numbers * tensor.elementBytes;
  simt::checkShared(shared, bytes, "TMA writes");
  const uint32_t address = sharedAddress(shared);
  if (address % (tensor.swizzleBytes ? 8 * tensor.swizzleBytes : 128) != 0) {
    simt::fault("TMA: shared memory is not aligned for the swizzle");
  }
  // A swizzle permutes whole rows.
  if (tensor.swizzleBytes != 0 && rowBytes != tensor.swizzleBytes) {
    simt::fault("TMA: the emulator knows boxes as wide as their swizzle");
  }
  const std::array<int64_t, CUtensorMap::kRank> begin = {x, y, z, w};
  const auto barrierOffset = reinterpret_cast<char*>(barrier) - simt::sharedMemory();
  for (int rank = 0; rank < simt::clusterSize(); rank++) {
    if ((blocks >> rank & 1) == 0) continue;
    simt::inBlock(rank, [&] {
      auto* const own = reinterpret_cast<uint64_t*>(simt::sharedMemory() + barrierOffset);
      Mbarrier* const b = &mbarrier(own);
      simt::deliverLater([=] {
        simt::inBlock(rank, [&] { copyBox(address, tensor, begin); });
        b->bytes -= static_cast<int64_t>(bytes);
        b->advance();
      });
    });
  }
}

void queueProduct(const WarpgroupProduct& product) {
  WarpgroupProduct mine = product;
  simt::warpgroupOperation("wgmma", &mine, [](void* const arguments[kMembers]) {
    Product together;
    for (int i = 0; i < kMembers; i++) {
      together.of[i] = *static_cast<const WarpgroupProduct*>(arguments[i]);
      const WarpgroupProduct &a = together.of[0], &b = together.of[i];
      if (a.n != b.n || a.descriptorA != b.descriptorA || a.descriptorB != b.descriptorB ||
          a.accumulate != b.accumulate) {
        simt::fault("wgmma: threads of a warpgroup disagree about the operands");
      }
    }
    together.n = together.of[0].n;
    Products& all = products();
    if (!find(all, together.of[0].d)) {
      Products::Accumulator accumulator;
      accumulator.n = together.n;
      for (int i = 0; i < kMembers; i++) {
        float* const d = together.of[i].d;
        accumulator.d[i] = d;
        accumulator.values.insert(accumulator.values.end(), d, d + together.n / 2);
        std::fill(d, d + together.n / 2, NAN);
      }
      all.accumulators.push_back(std::move(accumulator));
    }
    all.groups.back().push_back(together);
  });
}

void wgmmaCommit() {
  simt::warpgroupOperation("wgmma.commit_group", nullptr,
                           [](void* const[]) { products().groups.emplace_back(); });
}

void wgmmaWaitFor(int pending) {
  int left = pending;
  simt::warpgroupOperation("wgmma.wait_group", &left, [](void* const arguments[kMembers]) {
    const int pending = *static_cast<const int*>(arguments[0]);
    Products& all = products();
    while (static_cast<int>(all.groups.size()) - 1 > pending) {
      for (const Product& product : all.groups.front()) {
        multiply(product, *find(all, product.of[0].d));
      }
      all.groups.pop_front();
    }
    // Registers that no product is under way for are the threads' again.
    std::erase_if(all.accumulators, [&](const Products::Accumulator& accumulator) {
      for (const auto& group : all.groups) {
        for (const Product& product : group) {
          if (product.of[0].d == accumulator.d[0]) return false;
        }
      }
      const int own = accumulator.n / 2;
      for (int i = 0; i < kMembers; i++) {
        std::copy_n(&accumulator.values[static_cast<size_t>(i * own)], own, accumulator.d[i]);
      }
      return true;
    });
  });
}

namespace {

// As the driver checks it, for what the project uses.
CUresult encodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                     const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* box,
                     const cuuint32_t* elementStride, CUtensorMapInterleave,
                     CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (rank < 1 || rank > CUtensorMap::kRank) return CUDA_ERROR_INVALID_VALUE;
  CUtensorMap result = {};
  result.base = static_cast<const char*>(base);
  result.rank = rank;
  result.elementBytes = type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ? 2 : 4;
  result.swizzleBytes = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : 16u << swizzle;
  bool valid = reinterpret_cast<uintptr_t>(base) % 16 == 0;
  for (cuuint32_t i = 0; i < rank; i++) {
    result.size[i] = size[i];
    result.stride[i] = i == 0 ? result.elementBytes : stride[i - 1];
    result.box[i] = box[i];
    valid = valid && size[i] > 0 && box[i] > 0 && box[i] <= 256 && elementStride[i] == 1 &&
            (i == 0 || result.stride[i] % 16 == 0);
  }
  const uint32_t inner = box[0] * result.elementBytes;
  valid = valid && inner % 16 == 0 && (result.swizzleBytes == 0 || inner <= result.swizzleBytes);
  if (!valid) return CUDA_ERROR_INVALID_VALUE;
  *map = result;
  return CUDA_SUCCESS;
}

}  // namespace

}  // namespace dit::cuda

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  if (std::strcmp(symbol, "cuTensorMapEncodeTiled") != 0) return cudaErrorInvalidValue;
  *function = reinterpret_cast<void*>(&dit::cuda::encodeTiled);
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// The warp's instructions of native/cuda/ptx.cuh: each lane brings its registers, and the last to
// arrive does the work of all.
#include "ptx_host.h"

#include <cstdlib>

namespace dit::simt {

const TensorCore& tensorCore() {
  static const char* const arch = std::getenv("DIT_CUDA_ARCH");
  static const bool ampere = arch && std::strcmp(arch, "sm_80") == 0;
  return ampere ? kAmpere : kHopper;
}

}  // namespace dit::simt

namespace dit::cuda {

namespace {

using simt::kMembers;
using simt::kWarp;

constexpr uint32_t kAllLanes = 0xffffffffu;

uint16_t half(uint32_t pair, int which) { return static_cast<uint16_t>(pair >> (16 * which)); }

struct MatrixLoad {
  uint32_t* registers;
  int count;
  const void* row;
  bool transposed;
};

struct Product {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  int k;
};

const Product& product(void* const arguments[], int lane) {
  return *static_cast<const Product*>(arguments[lane]);
}

// d += a b, with a [16, k] and b [k, 8] gathered from the lanes' fragments.
template <int kMost>
void accumulate(const simt::TensorCore& core, void* const arguments[], int k,
                const float (&a)[16][kMost], const float (&b)[kMost][8]) {
  for (int row = 0; row < 16; row++) {
    float sums[8];
    const auto at = [&](int column) -> float& {
      return product(arguments, row % 8 * 4 + column / 2).d[row / 8 * 2 + column % 2];
    };
    for (int column = 0; column < 8; column++) sums[column] = at(column);
    simt::addProducts(core, sums, a[row], b[0], 8, k);
    for (int column = 0; column < 8; column++) at(column) = sums[column];
  }
}

struct Copy {
  char* shared;
  const char* global;
  size_t bytes;
  bool valid;
};

// A thread's copies, group by group; the last is not committed yet.
struct Copies {
  std::vector<std::vector<Copy>> groups = {{}};
};

}  // namespace

void loadMatrices(uint32_t* registers, int count, const void* row, bool transposed) {
  MatrixLoad mine = {registers, count, row, transposed};
  simt::warpOperation(kAllLanes, transposed ? "ldmatrix.trans" : "ldmatrix", &mine,
                      [](void* const arguments[kMembers]) {
                        const auto load = [&](int lane) {
                          return *static_cast<const MatrixLoad*>(arguments[lane]);
                        };
                        for (int matrix = 0; matrix < load(0).count; matrix++) {
                          uint16_t values[8][8];
                          for (int i = 0; i < 8; i++) {
                            const void* const address = load(8 * matrix + i).row;
                            simt::checkShared(address, 16, "ldmatrix");
                            if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
                              simt::fault("ldmatrix: a row is not aligned to 16 bytes");
                            }
                            std::memcpy(values[i], address, 16);
                          }
                          for (int lane = 0; lane < kWarp; lane++) {
                            const int g = lane / 4, q = lane % 4;
                            uint16_t low = values[g][2 * q], high = values[g][2 * q + 1];
                            if (load(lane).transposed)
                              low = values[2 * q][g], high = values[2 * q + 1][g];
                            load(lane).registers[matrix] = low | static_cast<uint32_t>(high) << 16;
                          }
                        }
                      });
}

void multiplyBf16(float (&d)[4], const uint32_t* a, const uint32_t* b, int k) {
  Product mine = {d, a, b, k};
  simt::warpOperation(kAllLanes, k == 16 ? "mma.m16n8k16" : "mma.m16n8k8", &mine,
                      [](void* const arguments[kMembers]) {
                        float a[16][16], b[16][8];
                        const int k = product(arguments, 0).k;
                        for (int lane = 0; lane < kWarp; lane++) {
                          const Product& p = product(arguments, lane);
                          const int g = lane / 4, q = lane % 4;
                          for (int i = 0; i < k / 4; i++) {
                            for (int j = 0; j < 2; j++) {
                              a[g + 8 * (i % 2)][2 * q + j + 8 * (i / 2)] =
                                  bf16ToFloat(half(p.a[i], j));
                            }
                          }
                          for (int i = 0; i < k / 8; i++) {
                            for (int j = 0; j < 2; j++)
                              b[2 * q + j + 8 * i][g] = bf16ToFloat(half(p.b[i], j));
                          }
                        }
                        accumulate(simt::tensorCore(), arguments, k, a, b);
                      });
}

void mmaTf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Product mine = {d, a, b, 8};
  simt::warpOperation(kAllLanes, "mma.m16n8k8.tf32", &mine, [](void* const arguments[kMembers]) {
    // The tensor cores do not look at the last 13 bits.
    const auto tf32 = [](uint32_t bits) { return __uint_as_float(bits & ~0x1fffu); };
    float a[16][8], b[8][8];
    for (int lane = 0; lane < kWarp; lane++) {
      const Product& p = product(arguments, lane);
      const int g = lane / 4, q = lane % 4;
      for (int i = 0; i < 4; i++) a[g + 8 * (i % 2)][q + 4 * (i / 2)] = tf32(p.a[i]);
      for (int i = 0; i < 2; i++) b[q + 4 * i][g] = tf32(p.b[i]);
    }
    accumulate(simt::tensorCore().forTf32(), arguments, 8, a, b);
  });
}

void copyAsync(void* shared, const void* global, size_t bytes, bool valid) {
  simt::checkShared(shared, bytes, "cp.async writes");
  if (valid) simt::checkGlobal(global, bytes, "cp.async reads");
  const auto misaligned = [&](const void* address) {
    return reinterpret_cast<uintptr_t>(address) % bytes != 0;
  };
  if (misaligned(shared) || (valid && misaligned(global))) {
    simt::fault("cp.async: an address is not aligned to its size");
  }
  simt::threadState<Copies>().groups.back().push_back(
      {static_cast<char*>(shared), static_cast<const char*>(global), bytes, valid});
}

void copyAsyncCommit() { simt::threadState<Copies>().groups.emplace_back(); }

void copyAsyncWaitFor(int pending) {
  auto& groups = simt::threadState<Copies>().groups;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.shared, copy.global, copy.bytes);
      } else {
        std::memset(copy.shared, 0, copy.bytes);
      }
    }
    groups.erase(groups.begin());
  }
}

}  // namespace dit::cuda

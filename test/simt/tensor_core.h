#pragma once

namespace dit::simt {

// How the tensor cores of a generation add, measured by Fasi, Higham, Mikaitis, Pranesh: "Numerical
// behavior of NVIDIA tensor cores" (PeerJ Computer Science 7:e330, 2021), and by Khattak, Mikaitis:
// "Accurate models of NVIDIA tensor cores" (arXiv 2512.07004, 2025). Products are exact. A block of
// them, of neighbouring k, and the sum so far are shifted to the largest exponent among them, keep
// 23 bits and some more below its leading one, lose the rest (towards 0) and are added exactly; the
// sum then loses what fp32 has no room for. Nothing is rounded to nearest, so that a sum of K
// products lies up to K / products * 2^-23 below its size, where fp32's own errors cancel.
struct TensorCore {
  int products;   // of 16-bit operands, added at once; half as many of TF32
  int extraBits;  // kept below fp32's last one

  TensorCore forTf32() const { return {products / 2, extraBits}; }
};
constexpr TensorCore kAmpere = {8, 1}, kHopper = {16, 2};

// d[j] += sum over k of a[k] b[k n + j], for j in [0, n), n <= 256.
void addProducts(const TensorCore& core, float* d, const float* a, const float* b, int n,
                 int depth);

}  // namespace dit::simt

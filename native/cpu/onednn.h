#pragma once

#include <compare>
#include <cstdint>
#include <memory>

#include "core/tensor.h"

// The one place that knows oneDNN (onednn.cc): matrix products and convolutions with their
// epilogues, and weights in the layout that these want. It builds against oneDNN 2.6 and 3.x.

namespace dit::cpu {

// What is added to a result before it is stored.
enum class Addend : uint8_t {
  None,
  Stored,  // what the output holds already
  F32,     // a tensor of the output's shape
  BF16,
};

// y = finish(x W^T): x [m, k], W [n, k], y [m, n], all dense. finish: plus bias [n], then GELU
// (tanh), then times gate [n], then plus the addend, in fp32.
struct ProductShape {
  int64_t m, n, k;
  DType type;    // of x and W: F32 or BF16
  DType output;  // F32 or BF16
  bool bias = true;
  bool gelu = false;
  bool gate = false;
  Addend addend = Addend::None;

  auto operator<=>(const ProductShape&) const = default;
};

// dW = dY^T x: dY [m, n], x [m, k], dW [n, k] F32, all dense.
struct WeightGradientShape {
  int64_t m, n, k;
  DType type;  // of dY and x: F32 or BF16

  auto operator<=>(const WeightGradientShape&) const = default;
};

// y = convolution of one image plus bias [co] plus the addend (None or Stored): x [height, width,
// ci], W [co, ci, kh, kw], y [.., .., co], all of one type.
struct ConvShape {
  int64_t height, width, ci, co, kh, kw;
  int64_t stride, padTop, padLeft, padBottom, padRight;
  DType type;
  Addend addend = Addend::None;

  int64_t outHeight() const { return (height + padTop + padBottom - kh) / stride + 1; }
  int64_t outWidth() const { return (width + padLeft + padRight - kw) / stride + 1; }

  auto operator<=>(const ConvShape&) const = default;
};

struct Operands {
  const void* x = nullptr;
  const void* bias = nullptr;    // F32
  const void* gate = nullptr;    // F32
  const void* addend = nullptr;  // where it is F32 or BF16
  void* y = nullptr;
};

// A weight in the layout that oneDNN chose for the shape that it was packed for. When a shape wants
// another layout, the weight is rewritten, and stays so: the layouts of convolutions depend on the
// size of the image, those of products (of all versions tried) on N and K only.
class PackedWeight {
 public:
  struct Impl;

  PackedWeight();
  PackedWeight(PackedWeight&&) noexcept;
  PackedWeight& operator=(PackedWeight&&) noexcept;
  ~PackedWeight();

  // 0 before anything is packed.
  size_t bytes() const;

 private:
  friend class OneDnn;
  std::unique_ptr<Impl> impl_;
};

// Runs products and convolutions, and keeps what oneDNN compiled for each shape. For one thread at
// a time. What is computed depends on the shape and the number of threads only.
class OneDnn {
 public:
  struct Impl;

  OneDnn();
  ~OneDnn();

  // Do products of BF16 use the processor's bf16 instructions?
  static bool hasBf16();

  // values: W, dense, F32 or BF16, in host memory.
  PackedWeight pack(const ProductShape& shape, const void* values, DType type);
  PackedWeight pack(const ConvShape& shape, const void* values, DType type);
  // values: W [n, k], or where `transposed` W^T [k, n], of the shape's type. Takes the memory that
  // the weight has already.
  void repack(const ProductShape& shape, PackedWeight& weight, const void* values, bool transposed);

  void run(const ProductShape& shape, PackedWeight& weight, const Operands& operands);
  void run(const ConvShape& shape, PackedWeight& weight, const Operands& operands);
  void run(const WeightGradientShape& shape, const void* dY, const void* x, float* dW);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace dit::cpu

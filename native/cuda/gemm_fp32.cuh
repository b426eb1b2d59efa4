#pragma once

#include "cuda/gemm_sm80.cuh"

// The same products in true fp32, by fused multiply-adds: for Precision::F32. A block of 256
// threads computes a tile of kSize x kSize, a thread quads of 4 x 4 numbers, 64 apart, so that it
// reads shared memory in vectors; the operands lie there along m and n, line after line of k,
// whichever way they come (4 bytes a copy, so that any alignment will do). A sum goes along k from
// the first number to the last, whatever the tile.

namespace dit::cuda {

template <int kSize_, int kBlocks_>
struct Fp32Tile {
  static constexpr int kSize = kSize_, kBlocks = kBlocks_;
  static constexpr int kThreads = 256;
  static constexpr int kK = 8, kStages = 4;
  static constexpr int kLine = kSize + 4;  // in shared memory: aligned to 16 bytes, in other banks
  static constexpr int kStageNumbers = 2 * kK * kLine;
  static constexpr size_t kShared = size_t{kStages} * kStageNumbers * sizeof(float);
};

// One operand's numbers [first, first + kSize) x [k, k + kK), step after step.
template <typename Shape, Lines kLines>
class Fp32Side {
 public:
  __device__ __forceinline__ Fp32Side(const Operand& operand, int64_t first, int64_t extent,
                                      int64_t kBegin)
      : across_(static_cast<int>(threadIdx.x) % kAcross),
        down_(static_cast<int>(threadIdx.x) / kAcross),
        stride_(operand.stride),
        left_(static_cast<int>(min(extent - first, int64_t{Shape::kSize}))) {
    const int64_t line = (kLines == Lines::AlongK ? first : kBegin) + down_;
    from_ = static_cast<const float*>(operand.data) + line * stride_ +
            (kLines == Lines::AlongK ? kBegin : first) + across_;
  }

  // Copies the next step, of which `k` numbers exist; zeros beyond, and beyond the operand.
  __device__ __forceinline__ void copy(float* shared, int k) {
    const float* from = from_;
#pragma unroll
    for (int i = 0; i < Shape::kSize * Shape::kK / Shape::kThreads; i++) {
      const int line = down_ + i * kStep;
      const int at = kLines == Lines::AlongK ? line : across_;
      const int inStep = kLines == Lines::AlongK ? across_ : line;
      copyAsync4(shared + inStep * Shape::kLine + at, from, at < left_ && inStep < k);
      from += kStep * stride_;
    }
    from_ += kLines == Lines::AlongK ? int64_t{Shape::kK} : Shape::kK * stride_;
  }

 private:
  // Neighbouring threads read neighbours.
  static constexpr int kAcross = kLines == Lines::AlongK ? Shape::kK : Shape::kSize;
  static constexpr int kStep = Shape::kThreads / kAcross;

  int across_, down_;
  int64_t stride_;
  int left_;
  const float* from_;
};

template <typename Shape, Lines kLinesA, Lines kLinesB, typename Epilogue>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    productKernelFp32(Product p, Epilogue epilogue) {
  awaitPrevious();
  constexpr int kQuads = Shape::kSize / 64, kK = Shape::kK, kStages = Shape::kStages;
  const TilePlace tile = tilePlace(static_cast<int>(blockIdx.x),
                                   static_cast<int>((p.m + Shape::kSize - 1) / Shape::kSize),
                                   static_cast<int>((p.n + Shape::kSize - 1) / Shape::kSize));
  const int64_t m = tile.m * Shape::kSize, n = tile.n * Shape::kSize;
  const int64_t kBegin = static_cast<int64_t>(blockIdx.y) * p.kSplit;
  const int k = static_cast<int>(min(p.kSplit, p.k - kBegin));
  const int steps = (k + kK - 1) / kK;
  float* const shared = reinterpret_cast<float*>(sharedMemory());
  Fp32Side<Shape, kLinesA> sideA(p.a, m, p.m, kBegin);
  Fp32Side<Shape, kLinesB> sideB(p.b, n, p.n, kBegin);
  const auto copyStep = [&](int step) {
    if (step < steps) {
      float* const to = shared + step % kStages * Shape::kStageNumbers;
      sideA.copy(to, k - step * kK);
      sideB.copy(to + kK * Shape::kLine, k - step * kK);
    }
    copyAsyncCommit();
  };

  const int row = static_cast<int>(threadIdx.x) / 16 * 4;
  const int column = static_cast<int>(threadIdx.x) % 16 * 4;
  float sums[4 * kQuads][4 * kQuads] = {};
#pragma unroll
  for (int step = 0; step < kStages - 1; step++) copyStep(step);
  for (int step = 0; step < steps; step++) {
    copyAsyncWait<kStages - 2>();
    __syncthreads();
    copyStep(step + kStages - 1);
    const float* const a = shared + step % kStages * Shape::kStageNumbers + row;
    const float* const b =
        shared + step % kStages * Shape::kStageNumbers + kK * Shape::kLine + column;
#pragma unroll 2
    for (int line = 0; line < kK; line++) {
      float x[4 * kQuads], y[4 * kQuads];
#pragma unroll
      for (int quad = 0; quad < kQuads; quad++) {
        const float4 fromA = load4(a + line * Shape::kLine + 64 * quad);
        const float4 fromB = load4(b + line * Shape::kLine + 64 * quad);
        x[4 * quad] = fromA.x, x[4 * quad + 1] = fromA.y;
        x[4 * quad + 2] = fromA.z, x[4 * quad + 3] = fromA.w;
        y[4 * quad] = fromB.x, y[4 * quad + 1] = fromB.y;
        y[4 * quad + 2] = fromB.z, y[4 * quad + 3] = fromB.w;
      }
#pragma unroll
      for (int i = 0; i < 4 * kQuads; i++) {
#pragma unroll
        for (int j = 0; j < 4 * kQuads; j++) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
      }
    }
  }
  copyAsyncWait<0>();

#pragma unroll
  for (int i = 0; i < 4 * kQuads; i++) {
    const int64_t r = m + i / 4 * 64 + row + i % 4;
    if (r >= p.m) continue;
    const auto at = epilogue.row(static_cast<int>(r));
#pragma unroll
    for (int quad = 0; quad < kQuads; quad++) {
      const int64_t c = n + 64 * quad + column;
      if (c >= p.n) continue;
      const int count = static_cast<int>(min(p.n - c, int64_t{4}));
      const float4 v = make_float4(sums[i][4 * quad], sums[i][4 * quad + 1], sums[i][4 * quad + 2],
                                   sums[i][4 * quad + 3]);
      const auto finish = [&](auto whole) {
        constexpr bool kWhole = decltype(whole)::value;
        const auto read = epilogue.template read<kWhole>(at, static_cast<int>(c), count);
        epilogue.template finish<kWhole>(at, static_cast<int>(c), v, read, count);
      };
      if (epilogue.vectors && count == 4) {
        finish(std::true_type{});
      } else {
        finish(std::false_type{});
      }
    }
  }
}

// Tiles of 128 where they fill the device, else of 64.
template <Lines kLinesA, Lines kLinesB, typename Epilogue>
void multiplyFp32(const Context& context, const Product& p, int64_t splits,
                  const Epilogue& epilogue) {
  const auto run = [&]<typename Shape>(Shape) {
    const int64_t tiles = divideUp(p.m, Shape::kSize) * divideUp(p.n, Shape::kSize);
    launch(context, productKernelFp32<Shape, kLinesA, kLinesB, Epilogue>,
           dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits)), dim3(Shape::kThreads),
           Shape::kShared, p, epilogue);
  };
  if (divideUp(p.m, 128) * divideUp(p.n, 128) * splits >= 2 * context.multiprocessors) {
    run(Fp32Tile<128, 2>{});
  } else {
    run(Fp32Tile<64, 3>{});
  }
}

}  // namespace dit::cuda

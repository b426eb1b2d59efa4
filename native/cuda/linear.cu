// y = x W^T with what follows it (epilogue.cuh), for x [R, M, K] as one matrix of R M rows and W
// [N, K]: both run along K, so nothing is transposed. gemm_sm80.cuh computes it in bf16 and TF32,
// gemm_fp32.cuh in fp32; Hopper has kernels of its own for what fits them.
//
// A block of DiT-XL/2 at 16 384 rows is 0.47 TFLOP in four products: 1.5 ms on an A100 (312
// TFLOP/s) and 0.3 ms of memory traffic, so large tiles matter. A batch of 1 has 512 rows with
// guidance: 36 large tiles for 108 multiprocessors, so it takes small ones. The modulation of 16
// conditions (N = 6 C = 6912) reads 16 MB of weights for 16 rows: 8 us of an A100's memory.
#include "cuda/epilogue.cuh"
#include "cuda/gemm_fp32.cuh"
#include "cuda/gemm_sm80.cuh"
#include "cuda/kernels.h"
#include "cuda/linear.h"

namespace dit::cuda {

namespace {

// ---------------------------------------------------------------- which tile

using WideTile = Tile<128, 192, 2, 4, 64, 4, 1>;  // 192 divides DiT's widths, 1152, 3456 and 4608
using LargeTile = Tile<128, 128, 2, 4, 64, 4, 2>;
using SmallTile = Tile<64, 64, 2, 2, 128, 3, 3>;
using NarrowTile = Tile<128, 32, 4, 1, 128, 3, 2>;  // the last layer's 32 outputs
using FewTile = Tile<16, 64, 1, 4, 128, 4, 4>;      // a few conditions

enum class TileChoice : uint8_t { Wide, Large, Small, Narrow, Few };

// How long all tiles take, in numbers that one multiprocessor has to compute one after another,
// where a tile of this kind reaches this part of the peak.
constexpr double tileTime(int64_t rows, int64_t n, int64_t m, int64_t width, double part,
                          int multiprocessors) {
  const int64_t tiles = ((rows + m - 1) / m) * ((n + width - 1) / width);
  const int64_t waves = (tiles + multiprocessors - 1) / multiprocessors;
  return static_cast<double>(waves * m * width) / part;
}

// The bits of a result do not depend on the tile (gemm_sm80.cuh), so the choice may look at the
// rows. The parts of the peak are estimates.
constexpr TileChoice chooseTile(int64_t rows, int64_t n, int multiprocessors) {
  if (rows <= 32) return TileChoice::Few;
  if (n <= 32) return TileChoice::Narrow;
  const double wide = tileTime(rows, n, 128, 192, 1.0, multiprocessors);
  const double large = tileTime(rows, n, 128, 128, 0.95, multiprocessors);
  const double small = tileTime(rows, n, 64, 64, 0.6, multiprocessors);
  if (small < wide && small < large) return TileChoice::Small;
  return wide < large ? TileChoice::Wide : TileChoice::Large;
}
static_assert(chooseTile(16384, 4608, 132) == TileChoice::Wide);
static_assert(chooseTile(512, 1152, 108) == TileChoice::Small);
static_assert(chooseTile(16, 6912, 108) == TileChoice::Few);

// ---------------------------------------------------------------- the products

// Calls work(epilogue) with the one that the arguments ask for.
template <typename Out, typename Act, typename Work>
void withEpilogue(const LinearArgs& args, const Work& work) {
  switch (args.epilogue) {
    case Epilogue::Bias:
      return work(ForwardEpilogue<Epilogue::Bias, Out, Act>(args));
    case Epilogue::BiasGelu:
      return work(ForwardEpilogue<Epilogue::BiasGelu, Out, Act>(args));
    case Epilogue::BiasResidual:
      return work(ForwardEpilogue<Epilogue::BiasResidual, Out, Act>(args));
  }
}

template <typename T, typename Epilogue>
void multiplyBySize(const Context& context, const Product& p, const Epilogue& epilogue) {
  const auto run = [&]<typename Shape>(Shape) {
    multiply<T, Shape, Lines::AlongK, Lines::AlongK>(context, p, /*splits=*/1, epilogue);
  };
  switch (chooseTile(p.m, p.n, context.multiprocessors)) {
    case TileChoice::Wide:
      return run(WideTile{});
    case TileChoice::Large:
      return run(LargeTile{});
    case TileChoice::Small:
      return run(SmallTile{});
    case TileChoice::Narrow:
      return run(NarrowTile{});
    case TileChoice::Few:
      return run(FewTile{});
  }
}

void multiplyWithEpilogue(const Context& context, const Product& p, Precision precision,
                          const LinearArgs& args) {
  switch (precision) {
    case Precision::F32:
      return withEpilogue<float, float>(args, [&](const auto& epilogue) {
        multiplyFp32<Lines::AlongK, Lines::AlongK>(context, p, /*splits=*/1, epilogue);
      });
    case Precision::TF32:
      return withEpilogue<float, float>(
          args, [&](const auto& epilogue) { multiplyBySize<float>(context, p, epilogue); });
    case Precision::BF16:
      if (args.y.dtype == DType::BF16) {
        return withEpilogue<Bf16, Bf16>(
            args, [&](const auto& epilogue) { multiplyBySize<Bf16>(context, p, epilogue); });
      }
      return withEpilogue<float, Bf16>(
          args, [&](const auto& epilogue) { multiplyBySize<Bf16>(context, p, epilogue); });
  }
}

}  // namespace

// ---------------------------------------------------------------- weights

const LinearWeight& linearWeight(const PreparedWeight* weight) {
  const auto* ours = dynamic_cast<const LinearWeight*>(weight);
  DIT_CHECK(ours != nullptr, ErrorCode::Internal,
            "linear: the weight was not made by prepareLinear or prepareTrainedLinear of this "
            "backend");
  return *ours;
}

std::unique_ptr<PreparedWeight> prepareLinear(Context& context, const LinearWeightArgs& args) {
  auto weight = std::make_unique<LinearWeight>();
  weight->n = args.values.shape[0];
  weight->k = args.values.shape[1];
  weight->rows = args.rows;
  weight->precision = args.precision;
  weight->type = args.precision == Precision::BF16 ? DType::BF16 : DType::F32;
  weight->stride = alignedStride(weight->k, weight->type);
  const size_t row = static_cast<size_t>(weight->stride) * dtypeSize(weight->type);
  weight->memory = DeviceMemory(context, static_cast<size_t>(weight->n) * row);
  weight->values = weight->memory.data();

  // The host's values go through scratch memory, some rows at a time, and are converted on the
  // device.
  constexpr int64_t kBytesAtOnce = 16 << 20;
  const int64_t hostRow = weight->k * static_cast<int64_t>(dtypeSize(args.values.dtype));
  const int64_t rowsAtOnce = std::clamp<int64_t>(kBytesAtOnce / hostRow, 1, weight->n);
  void* const room = context.scratch(static_cast<size_t>(rowsAtOnce * hostRow));
  for (int64_t first = 0; first < weight->n; first += rowsAtOnce) {
    const int64_t rows = std::min(rowsAtOnce, weight->n - first);
    context.upload(room, args.values.as<char>() + first * hostRow,
                   static_cast<size_t>(rows * hostRow));
    copyRows(context, Tensor(room, args.values.dtype, {rows, weight->k}),
             static_cast<char*>(weight->memory.data()) + static_cast<size_t>(first) * row,
             weight->type, args.precision == Precision::TF32);
  }
  return weight;
}

std::unique_ptr<PreparedWeight> prepareTrainedLinear(Context&, const TrainedLinearArgs& args) {
  auto weight = std::make_unique<LinearWeight>();
  weight->n = args.values.shape[0];
  weight->k = args.values.shape[1];
  weight->rows = args.rows;
  weight->type = args.values.dtype;
  weight->precision = weight->type == DType::BF16 ? Precision::BF16 : args.precision;
  DIT_CHECK(weight->precision != Precision::BF16 || weight->type == DType::BF16,
            ErrorCode::Internal, "prepareTrainedLinear: products in bf16 need values in bf16");
  weight->trained = true;
  weight->values = args.values.data;
  weight->stride = weight->k;
  return weight;
}

// ---------------------------------------------------------------- linear

void linear(Context& context, const LinearArgs& args) {
  const LinearWeight& weight = linearWeight(args.weight);
  DIT_CHECK(
      args.x.shape[2] == weight.k && args.y.shape[2] == weight.n && args.x.dtype == weight.type,
      ErrorCode::Shape, "linear: the weight takes ", dtypeName(weight.type), " [R, M, ", weight.k,
      "] to [R, M, ", weight.n, "], got ", dtypeName(args.x.dtype), " ", args.x.shape, " to ",
      args.y.shape);
  if (context.arch == Arch::Sm90a && hopper::linearFits(weight, args)) {
    return hopper::linear(context, weight, args);
  }
  const int64_t rows = args.x.shape[0] * args.x.shape[1];
  Product p{.a = {args.x.data, weight.k},
            .b = {weight.values, weight.stride},
            .m = rows,
            .n = weight.n,
            .k = weight.k,
            .kSplit = weight.k};
  if (weight.precision != Precision::F32) {
    // Odd numbers of channels, which DiT has none of.
    AlignedRows x(args.x.data, weight.type, rows, weight.k);
    AlignedRows w(weight.values, weight.type, weight.n, weight.stride);
    if (x.bytes() + w.bytes() > 0) {
      char* const room = static_cast<char*>(context.scratch(x.bytes() + w.bytes()));
      w.copyTo(context, x.copyTo(context, room));
    }
    p.a = {x.data(), x.stride()};
    p.b = {w.data(), w.stride()};
  }
  multiplyWithEpilogue(context, p, weight.precision, args);
}

}  // namespace dit::cuda

#include "cpu/backend.h"

#include <cstring>

#include "cpu/conv.h"
#include "cpu/linear.h"
#include "cpu/parallel.h"

namespace dit::cpu {

namespace {

// Rows of the last dimension between a tensor, which may be a slice of columns, and dense memory.
template <typename Copy>
void eachRow(const Tensor& tensor, Copy&& copy) {
  const size_t size = dtypeSize(tensor.dtype);
  if (tensor.contiguous()) return copy(tensor.as<char>(), 0, tensor.bytes());
  const size_t rowBytes = static_cast<size_t>(tensor.shape[-1]) * size;
  const int64_t rows = tensor.shape[-1] > 0 ? tensor.count() / tensor.shape[-1] : 0;
  for (int64_t i = 0; i < rows; i++) {
    copy(tensor.as<char>() + i * tensor.rowStride * static_cast<int64_t>(size), i * rowBytes,
         rowBytes);
  }
}

// Less than this and waking other threads takes longer than the work, far longer when the processor
// has other things to do: tens of microseconds of one thread. Both depend on shapes alone, so the
// number of threads of a product does too.
constexpr double kLeastOperations = 10e6;    // of products and convolutions
constexpr double kLeastElements = 64 << 10;  // of everything else

}  // namespace

CpuBackend::CpuBackend(int threads) : kernels_(kernels()) {
  setThreads(threads);
  threads_ = cpu::threads();
}

bool CpuBackend::supports(Precision precision) const {
  switch (precision) {
    case Precision::F32:
      return true;
    case Precision::TF32:
      return false;
    case Precision::BF16:
      // Emulated bf16 would be slower than fp32.
      return OneDnn::hasBf16();
  }
  return false;
}

void CpuBackend::requirePrecision(Precision precision) const {
  DIT_CHECK(supports(precision), ErrorCode::Device, "this processor does not calculate in ",
            precisionName(precision),
            precision == Precision::BF16 ? " (that takes AVX-512 BF16 or AMX)" : "",
            ": use precision 'fp32'");
}

int CpuBackend::threadsFor(double work, double least) const { return work < least ? 1 : threads_; }

void* CpuBackend::allocate(size_t bytes) {
  Block block(bytes);
  void* data = block.data();
  blocks_.emplace(data, std::move(block));
  return data;
}

void CpuBackend::free(void* memory) { blocks_.erase(memory); }

size_t CpuBackend::freeBytes() const { return availableMemory(); }

void CpuBackend::upload(const Tensor& device, const void* host) {
  eachRow(device, [&](char* row, size_t offset, size_t bytes) {
    std::memcpy(row, static_cast<const char*>(host) + offset, bytes);
  });
}

void CpuBackend::download(void* host, const Tensor& device) {
  eachRow(device, [&](const char* row, size_t offset, size_t bytes) {
    std::memcpy(static_cast<char*>(host) + offset, row, bytes);
  });
}

void CpuBackend::zero(const Tensor& device) {
  const auto clear = [](char* row, size_t, size_t bytes) { std::memset(row, 0, bytes); };
  eachRow(device, clear);
}

std::unique_ptr<PreparedWeight> CpuBackend::prepareLinear(const LinearWeightArgs& args) {
  requirePrecision(args.precision);
  const Turn turn(threadsFor(static_cast<double>(args.values.count()), kLeastElements));
  return cpu::prepareLinear(onednn_, args);
}

std::unique_ptr<PreparedWeight> CpuBackend::prepareTrainedLinear(const TrainedLinearArgs& args) {
  requirePrecision(args.values.dtype == DType::BF16 ? Precision::BF16 : args.precision);
  return cpu::prepareTrainedLinear(args);
}

std::unique_ptr<PreparedWeight> CpuBackend::prepareConv(const ConvWeightArgs& args) {
  requirePrecision(args.precision);
  const Turn turn(threadsFor(static_cast<double>(args.values.count()), kLeastElements));
  return cpu::prepareConv(onednn_, args);
}

void CpuBackend::linear(const LinearArgs& args) {
  // Of one product: with a prepared weight, what is computed for a row does not depend on how many
  // there are.
  const double m = static_cast<double>(rowsOfProduct(args));
  const double k = static_cast<double>(args.x.shape[2]);
  const Turn turn(threadsFor(2 * m * k * static_cast<double>(args.y.shape[2]), kLeastOperations));
  cpu::linear(onednn_, kernels_, args);
}

void CpuBackend::conv2d(const Conv2dArgs& args) {
  const double image = static_cast<double>(args.y.shape[1] * args.y.shape[2] * args.y.shape[3]);
  const double taps = 9 * static_cast<double>(args.x.shape[3]);  // 1 x 1 ones are rare and small
  const Turn turn(threadsFor(2 * image * taps, kLeastOperations));
  cpu::conv2d(onednn_, args);
}

template <typename Args>
void CpuBackend::run(void (*kernel)(const Args&), const Args& args, const Tensor& largest) {
  const Turn turn(threadsFor(static_cast<double>(largest.count()), kLeastElements));
  kernel(args);
}

void CpuBackend::layerNormModulate(const LayerNormModulateArgs& args) {
  run(kernels_.layerNormModulate, args, args.y);
}
void CpuBackend::attention(const AttentionArgs& args) { run(kernels_.attention, args, args.qkv); }
void CpuBackend::silu(const SiluArgs& args) { run(kernels_.silu, args, args.y); }
void CpuBackend::timestepEmbedding(const TimestepEmbeddingArgs& args) {
  run(kernels_.timestepEmbedding, args, args.y);
}
void CpuBackend::conditionEmbedding(const ConditionEmbeddingArgs& args) {
  run(kernels_.conditionEmbedding, args, args.y);
}
void CpuBackend::patchify(const PatchifyArgs& args) { run(kernels_.patchify, args, args.y); }
void CpuBackend::unpatchify(const UnpatchifyArgs& args) { run(kernels_.unpatchify, args, args.y); }
void CpuBackend::guide(const GuideArgs& args) { run(kernels_.guide, args, args.y); }
void CpuBackend::solverUpdate(const SolverUpdateArgs& args) {
  run(kernels_.solverUpdate, args, args.x);
}
void CpuBackend::noise(const NoiseArgs& args) { run(kernels_.noise, args, args.y); }
void CpuBackend::groupNorm(const GroupNormArgs& args) { run(kernels_.groupNorm, args, args.y); }
void CpuBackend::toChannelsLast(const ToChannelsLastArgs& args) {
  run(kernels_.toChannelsLast, args, args.y);
}
void CpuBackend::toChannelsFirst(const ToChannelsFirstArgs& args) {
  run(kernels_.toChannelsFirst, args, args.y);
}
void CpuBackend::sampleMoments(const SampleMomentsArgs& args) {
  run(kernels_.sampleMoments, args, args.moments);
}
void CpuBackend::toRgb8(const ToRgb8Args& args) { run(kernels_.toRgb8, args, args.y); }

void CpuBackend::linearBackward(const LinearBackwardArgs& args) {
  const double rows = static_cast<double>(args.x.shape[0] * args.x.shape[1]);
  const double k = static_cast<double>(args.x.shape[2]), n = static_cast<double>(args.dY.shape[2]);
  const Turn turn(threadsFor(2 * rows * k * n, kLeastOperations));
  cpu::linearBackward(onednn_, kernels_, args);
}
void CpuBackend::gateBackward(const GateBackwardArgs& args) {
  run(kernels_.gateBackward, args, args.dY);
}
void CpuBackend::layerNormModulateBackward(const LayerNormModulateBackwardArgs& args) {
  run(kernels_.layerNormModulateBackward, args, args.dX);
}
void CpuBackend::attentionBackward(const AttentionBackwardArgs& args) {
  run(kernels_.attentionBackward, args, args.qkv);
}
void CpuBackend::siluBackward(const SiluBackwardArgs& args) {
  run(kernels_.siluBackward, args, args.dX);
}
void CpuBackend::conditionEmbeddingBackward(const ConditionEmbeddingBackwardArgs& args) {
  const int64_t rows = args.dTable.shape[0];
  for (int64_t e = 0; e < args.label.count(); e++) {
    const int32_t label = args.label.as<int32_t>()[e];
    DIT_CHECK(label >= 0 && label < rows, ErrorCode::Shape, "conditionEmbeddingBackward: label ", e,
              " must be 0 to ", rows - 1, ", got ", label);
  }
  run(kernels_.conditionEmbeddingBackward, args, args.dY);
}
void CpuBackend::unpatchifyBackward(const UnpatchifyBackwardArgs& args) {
  run(kernels_.unpatchifyBackward, args, args.dX);
}
void CpuBackend::drawLatents(const DrawLatentsArgs& args) {
  run(kernels_.drawLatents, args, args.y);
}
void CpuBackend::qSample(const QSampleArgs& args) { run(kernels_.qSample, args, args.y); }
void CpuBackend::loss(const LossArgs& args) { run(kernels_.loss, args, args.model); }
void CpuBackend::squaredNorm(const SquaredNormArgs& args) {
  run(kernels_.squaredNorm, args, args.x);
}
void CpuBackend::adamW(const AdamWArgs& args) { run(kernels_.adamW, args, args.param); }
void CpuBackend::cast(const CastArgs& args) { run(kernels_.cast, args, args.y); }

}  // namespace dit::cpu

#include "cpu/linear.h"

#include <cstring>

#include "cpu/parallel.h"

namespace dit::cpu {

namespace {

struct LinearWeight final : PreparedWeight {
  int64_t n, k;
  DType type;
  mutable PackedWeight packed;  // its layout is a cache: see PackedWeight

  size_t bytes() const override { return packed.bytes(); }
};

// Matrix r of [R, M, N].
Tensor matrix(const Tensor& t, int64_t r) {
  const int64_t m = t.shape[1], n = t.shape[2];
  const auto distance = m * t.rowStride * static_cast<int64_t>(dtypeSize(t.dtype));
  Tensor view(t.as<char>() + r * distance, t.dtype, {m, n});
  view.rowStride = m > 1 ? t.rowStride : n;
  return view;
}

void copyMatrix(const Tensor& to, const Tensor& from) {
  const auto size = static_cast<int64_t>(dtypeSize(to.dtype));
  parallelFor(to.shape[0], [&](int64_t i) {
    std::memcpy(to.as<char>() + i * to.rowStride * size,
                from.as<char>() + i * from.rowStride * size, to.shape[1] * size);
  });
}

}  // namespace

std::unique_ptr<PreparedWeight> prepareLinear(OneDnn& onednn, const LinearWeightArgs& args) {
  auto weight = std::make_unique<LinearWeight>();
  weight->n = args.values.shape[0];
  weight->k = args.values.shape[1];
  weight->type = args.precision == Precision::BF16 ? DType::BF16 : DType::F32;
  const ProductShape shape{
      .m = args.rows, .n = weight->n, .k = weight->k, .type = weight->type, .output = weight->type};
  weight->packed = onednn.pack(shape, args.values.data, args.values.dtype);
  return weight;
}

void linear(OneDnn& onednn, const Kernels&, const LinearArgs& args) {
  const auto* weight = dynamic_cast<const LinearWeight*>(args.weight);
  DIT_CHECK(weight != nullptr, ErrorCode::Internal,
            "linear: the weight was not made by prepareLinear of the CPU");
  const int64_t rows = args.x.shape[0], m = args.x.shape[1], n = args.y.shape[2];
  DIT_CHECK(args.x.shape[2] == weight->k && n == weight->n && args.x.dtype == weight->type,
            ErrorCode::Shape, "linear: the weight takes ", dtypeName(weight->type), " [R, M, ",
            weight->k, "] to [R, M, ", weight->n, "], got ", dtypeName(args.x.dtype), " ",
            args.x.shape, " to ", args.y.shape);

  // oneDNN 2.6 writes and adds dense matrices only: others go through a dense copy.
  const Tensor &y = args.y, &residual = args.residual;
  const bool copiesY = !matrix(y, 0).contiguous();
  const bool copiesResidual = residual && !matrix(residual, 0).contiguous();
  const size_t elements = m * n, yBytes = copiesY ? elements * dtypeSize(y.dtype) : 0;
  const size_t bytes = yBytes + (copiesResidual ? elements * dtypeSize(residual.dtype) : 0);
  char* copies = bytes > 0 ? static_cast<char*>(scratch(bytes)) : nullptr;

  for (int64_t r = 0; r < rows; r++) {
    const Tensor out = matrix(y, r);
    const Tensor dense = copiesY ? Tensor(copies, y.dtype, {m, n}) : out;
    ProductShape shape{.m = m,
                       .n = n,
                       .k = weight->k,
                       .type = weight->type,
                       .output = y.dtype,
                       .gelu = args.epilogue == Epilogue::BiasGelu};
    Operands operands{.x = matrix(args.x, r).data, .bias = args.bias.data, .y = dense.data};
    if (args.gate.table) {
      const Tensor& table = args.gate.table;
      const int32_t entry = args.gate.index.as<int32_t>()[r];
      DIT_CHECK(entry >= 0 && entry < table.shape[0], ErrorCode::Shape, "linear: the gate of row ",
                r, " is entry ", entry, " of ", table.shape[0]);
      shape.gate = true;
      operands.gate = table.as<float>() + entry * table.rowStride;
    }
    if (residual) {
      Tensor addend = matrix(residual, residual.shape[0] == 1 ? 0 : r);
      if (copiesResidual) {
        const Tensor copy(copies + yBytes, residual.dtype, {m, n});
        copyMatrix(copy, addend);
        addend = copy;
      }
      shape.addend = addend.data == dense.data      ? Addend::Stored
                     : residual.dtype == DType::F32 ? Addend::F32
                                                    : Addend::BF16;
      operands.addend = addend.data;
    }
    onednn.run(shape, weight->packed, operands);
    if (copiesY) copyMatrix(out, dense);
  }
}

std::unique_ptr<PreparedWeight> prepareTrainedLinear(OneDnn&, const TrainedLinearArgs&) {
  throw Error(ErrorCode::Internal, "prepareTrainedLinear: not built yet");
}

void linearBackward(OneDnn&, const Kernels&, const LinearBackwardArgs&) {
  throw Error(ErrorCode::Internal, "linearBackward: not built yet");
}

}  // namespace dit::cpu

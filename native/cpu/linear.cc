#include "cpu/linear.h"

#include <cstring>

#include "cpu/parallel.h"

namespace dit::cpu {

namespace {

// The matrix as oneDNN wants it. A trained weight has such copies of its values for products with W
// and with W^T, each made when it is first needed and again when the values have changed. Products
// with the values as they lie take 1 to 17 % longer, and a copy about 1 % of one (4096 rows, N
// 3072, K 768 on two Zen 5 cores, dX in fp32: 46.1 ms, with a copy 40.2, to make it 0.2; in bf16:
// 20.2, 19.5 and 0.3 ms).
struct LinearWeight final : PreparedWeight {
  struct Copy {
    PackedWeight packed;  // its layout is a cache: see PackedWeight
    bool current = false;
  };

  int64_t n, k;
  DType type;
  Tensor values;  // of a trained weight only
  mutable Copy forward, backward;

  bool trained() const { return static_cast<bool>(values); }
  size_t bytes() const override { return forward.packed.bytes() + backward.packed.bytes(); }
  void changed() override {
    if (trained()) forward.current = backward.current = false;
  }
};

const LinearWeight& linearWeight(const PreparedWeight* weight) {
  const auto* ours = dynamic_cast<const LinearWeight*>(weight);
  DIT_CHECK(ours != nullptr, ErrorCode::Internal,
            "linear: the weight was not made by prepareLinear or prepareTrainedLinear of the CPU");
  return *ours;
}

// What the products of this shape multiply by: W, or W^T.
PackedWeight& packed(OneDnn& onednn, const LinearWeight& weight, const ProductShape& shape,
                     bool transposed) {
  LinearWeight::Copy& copy = transposed ? weight.backward : weight.forward;
  if (!copy.current) {
    onednn.repack(shape, copy.packed, weight.values.data, transposed);
    copy.current = true;
  }
  return copy.packed;
}

// [1, R M, N]
Tensor oneRow(const Tensor& t) {
  if (!t) return t;
  Tensor view(t.data, t.dtype, {1, t.shape[0] * t.shape[1], t.shape[2]});
  view.rowStride = t.rowStride;
  return view;
}

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

void checkGate(const RowVector& gate) {
  for (int64_t r = 0; r < gate.index.count(); r++) {
    const int32_t entry = gate.index.as<int32_t>()[r];
    DIT_CHECK(entry >= 0 && entry < gate.table.shape[0], ErrorCode::Shape,
              "linear: the gate of row ", r, " is entry ", entry, " of ", gate.table.shape[0]);
  }
}

// The products of M rows each, with what follows.
void multiply(OneDnn& onednn, const LinearWeight& weight, const LinearArgs& args) {
  const int64_t rows = args.x.shape[0], m = args.x.shape[1], n = args.y.shape[2];
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
                       .k = weight.k,
                       .type = weight.type,
                       .output = y.dtype,
                       .gelu = args.epilogue == Epilogue::BiasGelu};
    Operands operands{.x = matrix(args.x, r).data, .bias = args.bias.data, .y = dense.data};
    if (args.gate.table) {
      const Tensor& table = args.gate.table;
      const int32_t entry = args.gate.index.as<int32_t>()[r];
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
    onednn.run(shape, packed(onednn, weight, shape, /*transposed=*/false), operands);
    if (copiesY) copyMatrix(out, dense);
  }
}

}  // namespace

std::unique_ptr<PreparedWeight> prepareLinear(OneDnn& onednn, const LinearWeightArgs& args) {
  auto weight = std::make_unique<LinearWeight>();
  weight->n = args.values.shape[0];
  weight->k = args.values.shape[1];
  weight->type = args.precision == Precision::BF16 ? DType::BF16 : DType::F32;
  const ProductShape shape{
      .m = args.rows, .n = weight->n, .k = weight->k, .type = weight->type, .output = weight->type};
  weight->forward = {onednn.pack(shape, args.values.data, args.values.dtype), true};
  return weight;
}

std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args) {
  auto weight = std::make_unique<LinearWeight>();
  weight->n = args.values.shape[0];
  weight->k = args.values.shape[1];
  weight->type = args.values.dtype;
  weight->values = args.values;
  return weight;
}

int64_t rowsOfProduct(const LinearArgs& args) {
  // What differs from row to row is no part of the product where that is kept.
  const bool sharedResidual = args.residual && args.residual.shape[0] == 1;
  const bool apart = !args.kept && (args.gate.table || sharedResidual);
  const int64_t rows = linearWeight(args.weight).trained() && !apart ? args.x.shape[0] : 1;
  return rows * args.x.shape[1];
}

void linear(OneDnn& onednn, const Kernels& kernels, const LinearArgs& args) {
  const LinearWeight& weight = linearWeight(args.weight);
  DIT_CHECK(
      args.x.shape[2] == weight.k && args.y.shape[2] == weight.n && args.x.dtype == weight.type,
      ErrorCode::Shape, "linear: the weight takes ", dtypeName(weight.type), " [R, M, ", weight.k,
      "] to [R, M, ", weight.n, "], got ", dtypeName(args.x.dtype), " ", args.x.shape, " to ",
      args.y.shape);
  if (args.gate.table) checkGate(args.gate);

  if (args.kept) {
    linear(onednn, kernels,
           {.x = args.x, .weight = args.weight, .bias = args.bias, .y = args.kept});
    kernels.linearFinish(
        {.kept = args.kept, .gate = args.gate, .residual = args.residual, .y = args.y});
  } else if (rowsOfProduct(args) > args.x.shape[1]) {
    LinearArgs together = args;
    together.x = oneRow(args.x);
    together.y = oneRow(args.y);
    together.residual = oneRow(args.residual);
    multiply(onednn, weight, together);
  } else {
    multiply(onednn, weight, args);
  }
}

void linearBackward(OneDnn& onednn, const Kernels& kernels, const LinearBackwardArgs& args) {
  const int64_t m = args.x.shape[0] * args.x.shape[1];
  const int64_t k = args.x.shape[2], n = args.dY.shape[2];
  const DType type = args.x.dtype;
  if (args.dX) {
    const LinearWeight& weight = linearWeight(args.weight);
    DIT_CHECK(weight.trained(), ErrorCode::Internal,
              "linearBackward: the weight was not made by prepareTrainedLinear");
    DIT_CHECK(k == weight.k && n == weight.n && type == weight.type, ErrorCode::Shape,
              "linearBackward: the weight takes ", dtypeName(weight.type), " [R, M, ", weight.k,
              "] to [R, M, ", weight.n, "], got ", dtypeName(type), " ", args.x.shape, " to ",
              args.dY.shape);
    const ProductShape shape{.m = m,
                             .n = k,
                             .k = n,
                             .type = type,
                             .output = args.dX.dtype,
                             .bias = false,
                             .addend = args.addToDx ? Addend::Stored : Addend::None};
    onednn.run(shape, packed(onednn, weight, shape, /*transposed=*/true),
               {.x = args.dY.data, .y = args.dX.data});
  }
  if (args.preActivation) {
    kernels.geluBackward({.pre = args.preActivation, .x = args.x, .dX = args.dX});
  }

  // oneDNN writes gradients of weights, it does not add them.
  float* const product = static_cast<float*>(scratch(args.dWeight.bytes()));
  onednn.run({.m = m, .n = n, .k = k, .type = type}, args.dY.data, args.x.data, product);
  parallelFor(n, [&](int64_t i) {
    const float* const from = product + i * k;
    float* const to = args.dWeight.as<float>() + i * k;
    for (int64_t j = 0; j < k; j++) to[j] += from[j];
  });
  kernels.columnSums({.x = args.dY.reshape({m, n}), .sums = args.dBias});
}

}  // namespace dit::cpu

#include "cuda/tensor_map.h"

#include <array>

#include "cuda/runtime.h"

namespace dit::cuda {

namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

// From the driver, which is not linked: the library also loads where there is none.
Encode encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  DIT_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                            cudaEnableDefault, &found));
  DIT_CHECK(
      found == cudaDriverEntryPointSuccess && function, ErrorCode::Device,
      "CUDA: the driver has no cuTensorMapEncodeTiled: a driver for CUDA 12 or newer is needed");
  return reinterpret_cast<Encode>(function);
}

// Sizes, strides and the box in numbers, innermost first.
template <int kRank>
CUtensorMap encodeMap(const void* data, DType type, const std::array<int64_t, kRank>& size,
                      const std::array<int64_t, kRank - 1>& stride,
                      const std::array<int, kRank>& box) {
  static const Encode encode = encoder();  // the same for every device and thread
  cuuint64_t sizes[kRank], strides[kRank - 1];
  cuuint32_t boxes[kRank], ones[kRank];
  for (int i = 0; i < kRank; i++) {
    sizes[i] = static_cast<cuuint64_t>(size[i]);
    boxes[i] = static_cast<cuuint32_t>(box[i]);
    ones[i] = 1;
    if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(stride[i - 1]) * dtypeSize(type);
  }
  const CUtensorMapSwizzle swizzle =
      box[0] * dtypeSize(type) == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUtensorMapDataType format =
      type == DType::BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  CUtensorMap map;
  const CUresult status =
      encode(&map, format, kRank, const_cast<void*>(data), sizes, strides, boxes, ones,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  DIT_CHECK(status == CUDA_SUCCESS, ErrorCode::Internal,
            "CUDA: cuTensorMapEncodeTiled refused a tensor of ", size[0], " x ", size[1],
            ": error ", static_cast<int>(status));
  return map;
}

}  // namespace

CUtensorMap matrixMap(const void* data, DType type, int64_t rows, int64_t columns, int64_t stride,
                      int boxRows) {
  const int boxColumns = 128 / static_cast<int>(dtypeSize(type));
  return encodeMap<2>(data, type, {columns, rows}, {stride}, {boxColumns, boxRows});
}

CUtensorMap headsMap(const void* data, int64_t rows, int64_t tokens, int64_t heads, int64_t d,
                     int boxTokens, int columns) {
  const int64_t token = heads * d;
  return encodeMap<4>(data, DType::BF16, {d, heads, tokens, rows}, {d, token, tokens * token},
                      {columns, 1, boxTokens, 1});
}

CUtensorMap imageMap(const void* data, int64_t images, int64_t height, int64_t width,
                     int64_t channels, int boxWidth, int boxHeight) {
  return encodeMap<4>(data, DType::BF16, {channels, width, height, images},
                      {channels, width * channels, height * width * channels},
                      {kBoxColumns, boxWidth, boxHeight, 1});
}

}  // namespace dit::cuda

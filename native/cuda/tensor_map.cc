#include "cuda/tensor_map.h"

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

}  // namespace

CUtensorMap matrixMap(const void* data, int64_t rows, int64_t columns, int64_t stride,
                      int boxRows) {
  static const Encode encode = encoder();  // the same for every device and thread
  const cuuint64_t size[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t box[] = {kBoxColumns, static_cast<cuuint32_t>(boxRows)};
  const cuuint32_t one[] = {1, 1};
  CUtensorMap map;
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), size, strides, box,
             one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  DIT_CHECK(status == CUDA_SUCCESS, ErrorCode::Internal, "CUDA: cuTensorMapEncodeTiled refused ",
            rows, " x ", columns, " with rows ", stride, " apart: error ",
            static_cast<int>(status));
  return map;
}

}  // namespace dit::cuda

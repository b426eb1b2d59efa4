#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "cuda/context.h"
#include "ops/cuda_api.h"
#include "ops/ops.h"

namespace dit::cuda {

// The kernels for a device of this compute capability; the environment variable DIT_CUDA_ARCH
// ("sm_80", "sm_90a") picks those of an older one. Throws Device when there are none for it.
Arch archOf(int major, int minor);
const char* archName(Arch arch);

CudaDeviceInfo describe(int device);

// One device, one stream. All operations are queued; `download` waits.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device);
  ~CudaBackend() override;

  std::string name() const override;
  bool supports(Precision precision) const override;

  void* allocate(size_t bytes) override;
  void free(void* memory) override;
  size_t freeBytes() const override;
  void upload(const Tensor& device, const void* host) override;
  void download(void* host, const Tensor& device) override;
  void zero(const Tensor& device) override;

  // What the caller of `beginRecording` has to do: nothing, for the recording was replayed; run the
  // work; or run it and end the recording.
  enum class Recording : int { Replayed, Run, Record };
  Recording beginRecording(uint64_t key);
  void endRecording(bool keep);

  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) override;
  std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args) override;
  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) override;

#define DIT_DECLARE(name, Args) void name(const Args& args) override;
  DIT_OPERATIONS(DIT_DECLARE)
#undef DIT_DECLARE

 private:
  // Work that is repeated: a CUDA graph after it has run once without.
  struct Recorded {
    cudaGraphExec_t graph = nullptr;
  };

  void use() const;
  void pace();
  void forgetRecordings();

  Context context_;
  std::unordered_map<uint64_t, Recorded> recordings_;
  uint64_t recording_ = 0;
  cudaEvent_t paces_[2] = {};
  int64_t replays_ = 0;
};

}  // namespace dit::cuda

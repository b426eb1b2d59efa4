#pragma once

#include <cstdint>
#include <optional>
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

  // Backend::repeat, around the work. True: it was replayed. False: run it, then call endRecording,
  // with `succeeded` false when it has thrown.
  bool beginRecording(uint64_t key);
  void endRecording(bool succeeded);

  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) override;
  std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args) override;
  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) override;

#define DIT_DECLARE(name, Args) void name(const Args& args) override;
  DIT_OPERATIONS(DIT_DECLARE)
#undef DIT_DECLARE

 private:
  // Work between beginRecording and endRecording.
  struct UnderWay {
    uint64_t key;
    bool captured;  // or only run
  };

  void use() const;
  // The same for what must not happen while work is recorded.
  void useOutsideOfRecordings(const char* call) const;
  void replay(cudaGraphExec_t graph);
  void forgetRecordings() noexcept;
  void end() noexcept;

  Context context_;
  // Work that is repeated: null after it has run once, a CUDA graph from the second time on.
  std::unordered_map<uint64_t, cudaGraphExec_t> recordings_;
  int64_t freesOfRecordings_ = 0;  // Context::frees when they were made
  std::optional<UnderWay> underWay_;
  cudaEvent_t replayed_[2] = {};  // by the parity of `replays_`
  int64_t replays_ = 0;
};

}  // namespace dit::cuda

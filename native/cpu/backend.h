#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/onednn.h"
#include "ops/ops.h"

namespace dit::cpu {

// The processor: products and convolutions by oneDNN, everything else by our own kernels, memory by
// the host. What operations return is complete.
class CpuBackend final : public Backend {
 public:
  // threads: how many the operations may use; 0: as many as the process may run on.
  explicit CpuBackend(int threads);

  std::string name() const override { return "cpu"; }
  bool supports(Precision precision) const override;

  void* allocate(size_t bytes) override;
  void free(void* memory) override;
  size_t freeBytes() const override;
  void upload(const Tensor& device, const void* host) override;
  void download(void* host, const Tensor& device) override;
  void zero(const Tensor& device) override;

  std::unique_ptr<PreparedWeight> prepareLinear(const LinearWeightArgs& args) override;
  std::unique_ptr<PreparedWeight> prepareTrainedLinear(const TrainedLinearArgs& args) override;
  std::unique_ptr<PreparedWeight> prepareConv(const ConvWeightArgs& args) override;

#define DIT_DECLARE(name, Args) void name(const Args& args) override;
  DIT_OPERATIONS(DIT_DECLARE)
#undef DIT_DECLARE

 private:
  // `largest`: the tensor that says how much work it is.
  template <typename Args>
  void run(void (*kernel)(const Args&), const Args& args, const Tensor& largest);
  int threadsFor(double work, double least) const;
  void requirePrecision(Precision precision) const;

  int threads_;
  const Kernels& kernels_;
  OneDnn onednn_;
  std::unordered_map<void*, Block> blocks_;
};

}  // namespace dit::cpu

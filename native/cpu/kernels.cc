#include "cpu/kernels.h"

#include <cstdlib>
#include <string_view>

namespace dit::cpu {

// One table per compilation of native/cpu/simd.
namespace generic {
extern const Kernels kTable;
}
#ifdef DIT_X86_64
namespace avx2 {
extern const Kernels kTable;
}
namespace avx512 {
extern const Kernels kTable;
}
namespace avx512bf16 {
extern const Kernels kTable;
}
#endif

namespace {

// Best last; the conditions are the -march of the builds (CMakeLists.txt).
std::vector<const Kernels*> supportedTables() {
  std::vector<const Kernels*> tables = {&generic::kTable};
#ifdef DIT_X86_64
  const bool v4 = __builtin_cpu_supports("x86-64-v4");
  if (__builtin_cpu_supports("x86-64-v3")) tables.push_back(&avx2::kTable);
  if (v4) tables.push_back(&avx512::kTable);
  if (v4 && __builtin_cpu_supports("avx512bf16")) tables.push_back(&avx512bf16::kTable);
#endif
  return tables;
}

}  // namespace

const Kernels& kernels() {
  const std::vector<const Kernels*> tables = supportedTables();
  const char* wanted = std::getenv("DIT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *tables.back();
  for (const Kernels* table : tables) {
    if (std::string_view(table->isa) == wanted) return *table;
  }
  fail(ErrorCode::Option, "DIT_CPU_ISA is \"", wanted, "\", which is not generic, avx2, avx512 or ",
       "avx512bf16, or which this processor cannot run; its best is ", tables.back()->isa);
}

std::vector<const char*> supportedIsas() {
  std::vector<const char*> isas;
  for (const Kernels* table : supportedTables()) isas.push_back(table->isa);
  return isas;
}

}  // namespace dit::cpu

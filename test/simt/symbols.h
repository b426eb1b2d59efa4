#pragma once

#include <string>

namespace dit::simt {

// "dit::cuda::siluKernel<float>" for the address of that function, from the symbol table of the
// file that it is in: kernels are local to their sources, which the dynamic linker does not know.
std::string functionName(const void* function);

}  // namespace dit::simt

#pragma once

#include <cstddef>
#include <string>

// Memory between guard pages: the emulator's device memory and a block's shared memory.

namespace dit::simt {

// Whether the address lies in a guard page.
bool isGuard(const void* address);
// "12 bytes after the end of an allocation of 96 bytes".
std::string nearest(const void* address);

// Whether allocations can be used; kernels may not before awaitPrevious.
void setInReach(bool inReach);
bool isOutOfReach(const void* address);

// Shared memory of the block with this rank in its cluster.
void poisonShared(int rank, size_t bytes);
bool sharedIsWhole(int rank);

}  // namespace dit::simt

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

// The emulator of CUDA's execution model: a kernel is a function that every thread of every block
// runs. Threads are fibers of one OS thread; blocks run one after another. A fiber runs until it
// has to wait for others (a barrier, a warp's shuffle, a copy); then the scheduler goes on with the
// next one, in an order of warps and lanes that a seed permutes (DIT_SIMT_SEED), so that code which
// relies on an order fails.
//
// DIT_SIMT_TRACE in the environment tells of every launch.
//
// What it catches, as a fault that names the kernel, the block and the thread:
//   - a barrier or warp operation that not all of its threads reach, or reach by different ways
//   - accesses outside of an allocation and outside of shared memory (guard pages, canaries)
//   - shared memory that is read before it was written (it begins as NaN)
//   - global memory that is used before the wait for the kernels before, and threads without that
//   wait
//   - waits that were left out: copies and asynchronous products are delivered as late as allowed
//   - everything waiting for everything

namespace dit::simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  size_t count() const { return size_t{x} * y * z; }
};

constexpr int kWarp = 32;

// What a kernel's code sees of where it runs.
struct Position {
  Dim3 thread, block;  // threadIdx, blockIdx
  int linear = 0;      // of the thread in its block
  int lane() const { return linear % kWarp; }
  int warp() const { return linear / kWarp; }
};

const Position& position();
Dim3 gridDim();
Dim3 blockDim();

// The block's dynamic shared memory, poisoned when the block begins.
char* sharedMemory();
size_t sharedBytes();

// Runs a kernel to its end, `cluster` blocks at a time, neighbours in x. False after a fault, which
// `lastFault` describes.
bool run(const char* kernel, Dim3 grid, Dim3 block, int cluster, size_t sharedBytes,
         const std::function<void()>& body);
const std::string& lastFault();

// ---------------------------------------------------------------- for the emulated instructions

// Ends the kernel with a fault at this thread.
[[noreturn]] void fault(const std::string& what);

// The thread may use global memory from now on: the wait for the kernels before this one, which
// none may leave out. Before it, lanes 0 of the first blocks of each kernel find all memory out of
// reach.
void awaitPrevious();
// A fault where the thread that runs has not waited.
void requireWait(const char* what);

// Waits until `*counter` differs from `seen`. `what` is told when nothing can go on.
void waitForChange(const uint64_t* counter, uint64_t seen, const char* what);

// An operation that several threads do together. The threads of `mask` (bit i: the member i) all
// call it with the same `name`; when the last has arrived, `together` is called once with what each
// passed, and all go on. Members are lanes of a warp, or threads of a warpgroup.
constexpr int kMembers = 128;
struct Mask {
  uint64_t low = 0, high = 0;
  bool operator==(const Mask&) const = default;
  bool has(int member) const {
    return ((member < 64 ? low >> member : high >> (member - 64)) & 1) != 0;
  }
  void add(int member) { (member < 64 ? low : high) |= uint64_t{1} << (member % 64); }
};
using Together = void (*)(void* const arguments[kMembers]);
void warpOperation(uint32_t mask, const char* name, void* argument, Together together);
void warpgroupOperation(const char* name, void* argument, Together together);

// A barrier of `threads` threads of the block; `wait` false only arrives. Barrier 0 with all
// threads is __syncthreads.
void barrier(int number, int threads, bool wait);
int threadsOfBlock();

// Blocks that run together: how many, which one this is, a barrier of all their threads.
int clusterSize();
int clusterRank();
void clusterBarrier();
// Does something with the shared memory and the state of another block of the cluster.
void inBlock(int rank, const std::function<void()>& work);

// Work that happens some time before it is waited for; here at the latest moment: when every thread
// waits. In the order in which it was queued.
void deliverLater(std::function<void()> work);

// State that instructions keep in a block or in a thread: made when first asked for, gone with it.
void* findState(const void* key, bool ofThread);
void addState(const void* key, bool ofThread, void* state, void (*destroy)(void*));

template <typename State>
inline constexpr char kStateKey = 0;

template <typename State>
State& stateOf(bool thread) {
  const void* const key = &kStateKey<State>;
  if (void* const existing = findState(key, thread)) return *static_cast<State*>(existing);
  auto* const state = new State();
  addState(key, thread, state, [](void* data) { delete static_cast<State*>(data); });
  return *state;
}
template <typename State>
State& blockState() {
  return stateOf<State>(/*thread=*/false);
}
template <typename State>
State& threadState() {
  return stateOf<State>(/*thread=*/true);
}

// Whether [address, address + bytes) lies in shared memory or in a live allocation; a fault
// otherwise.
void checkShared(const void* address, size_t bytes, const char* what);
void checkGlobal(const void* address, size_t bytes, const char* what);

// ---------------------------------------------------------------- device memory

// Memory that ends at a guard page (up to the alignment of 256) and begins after one.
void* allocate(size_t bytes);  // null when `deviceBytes` would be exceeded
bool release(void* memory);    // false when it was written to beyond its end
size_t allocatedBytes();
constexpr size_t kDeviceBytes = size_t{2} << 30;

}  // namespace dit::simt

#include "simt.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "memory.h"

namespace dit::simt {

namespace {

struct StateSlot {
  const void* key;
  void* data;
  void (*destroy)(void*);
};

class States {
 public:
  ~States() { clear(); }
  void* find(const void* key) const {
    for (const StateSlot& slot : slots_) {
      if (slot.key == key) return slot.data;
    }
    return nullptr;
  }
  void add(const StateSlot& slot) { slots_.push_back(slot); }
  void clear() {
    for (const StateSlot& slot : slots_) slot.destroy(slot.data);
    slots_.clear();
  }

 private:
  std::vector<StateSlot> slots_;
};

struct ThreadFiber {
  Fiber fiber;
  char* stack = nullptr;
  struct Block* block = nullptr;
  Position position;
  bool finished = false;
  bool waited = false;  // for the kernels before
  // While it waits.
  const uint64_t* counter = nullptr;
  uint64_t seen = 0;
  const char* what = "";
  States states;
};

// Threads on their way to one operation or barrier.
struct Gathering {
  Mask mask, arrived;
  const char* name = "";
  void* arguments[kMembers] = {};
  uint64_t generation = 0;
};

struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;
};

constexpr int kBarriers = 16;

// What a block's threads share.
struct Block {
  int rank = 0;  // in its cluster
  std::vector<std::vector<std::unique_ptr<Gathering>>> warps, warpgroups;
  Barrier barriers[kBarriers];
  States states;
};

// The kernel that runs, if any. A program emulates one device, on one thread at a time.
struct Machine {
  const char* kernel = "";
  Dim3 grid, block;
  const std::function<void()>* body = nullptr;
  size_t sharedBytes = 0;

  Fiber scheduler;
  std::vector<std::unique_ptr<ThreadFiber>> threads;  // of the cluster that runs, then spare ones
  size_t size = 0;                                    // threads of a block
  ThreadFiber* running = nullptr;
  std::vector<std::unique_ptr<Block>> cluster;
  Block* current = nullptr;  // of the thread that runs, or that `inBlock` names
  Barrier clusterBarrier;
  std::deque<std::function<void()>> undelivered;
  std::string fault;
  uint64_t launches = 0;
  std::set<std::string> known;  // kernels that have run
  bool first = false;           // cluster of the first launch of a kernel
};

Machine machine;

uint64_t seed() {
  const char* const given = std::getenv("DIT_SIMT_SEED");
  return given ? std::strtoull(given, nullptr, 10) : 1;
}

std::string describe(const ThreadFiber& thread) {
  char text[160];
  const Position& p = thread.position;
  std::snprintf(text, sizeof(text), "block (%u, %u, %u), thread %d (warp %d, lane %d)", p.block.x,
                p.block.y, p.block.z, p.linear, p.warp(), p.lane());
  return text;
}

void record(const std::string& what) {
  machine.fault = std::string(machine.kernel) + ": " + what;
  if (machine.running) machine.fault += ", " + describe(*machine.running);
  std::fprintf(stderr, "simt: %s\n", machine.fault.c_str());
}

// A fault while no thread runs: in work that was delivered late.
struct SchedulerFault {};

[[noreturn]] void leave() {
  switchFiber(machine.running->fiber, machine.scheduler);
  std::abort();  // nobody switches back to a thread after a fault
}

void threadMain(void* argument) {
  auto* const thread = static_cast<ThreadFiber*>(argument);
  (*machine.body)();
  if (!thread->waited) fault("ended without awaitPrevious (griddepcontrol.wait)");
  thread->finished = true;
  leave();
}

// ---------------------------------------------------------------- accesses to no memory

// Where the signal handler sends a thread that touched a guard page: out of the handler, and on.
[[noreturn]] void faultAtAccess() { leave(); }

void onSignal(int, siginfo_t* info, void* context) {
  const bool early = isOutOfReach(info->si_addr);
  if (!machine.running || !(early || isGuard(info->si_addr))) {
    // Not the emulator's: as if it had not been caught.
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
    return;
  }
  record(early ? "global memory is used before awaitPrevious (griddepcontrol.wait)"
               : "an access outside of memory: " + nearest(info->si_addr));
  auto* const registers = &static_cast<ucontext_t*>(context)->uc_mcontext;
  // As if called, below the red zone.
  const auto stack = (registers->gregs[REG_RSP] - 256) & ~greg_t{15};
  registers->gregs[REG_RSP] = stack - 8;
  registers->gregs[REG_RIP] = reinterpret_cast<greg_t>(&faultAtAccess);
}

class SignalGuard {
 public:
  SignalGuard() {
    struct sigaction action = {};
    action.sa_sigaction = onSignal;
    // NODEFER: the handler does not return to where the signal was blocked.
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_);
  }
  ~SignalGuard() { sigaction(SIGSEGV, &before_, nullptr); }

 private:
  struct sigaction before_ = {};
};

// ---------------------------------------------------------------- blocks

// Warps in an order of the seed's, lanes within each too.
std::vector<size_t> order(std::mt19937_64& random, size_t threads) {
  std::vector<size_t> warps((threads + kWarp - 1) / kWarp), all;
  std::iota(warps.begin(), warps.end(), 0);
  std::shuffle(warps.begin(), warps.end(), random);
  for (const size_t warp : warps) {
    std::vector<size_t> lanes(std::min<size_t>(kWarp, threads - warp * kWarp));
    std::iota(lanes.begin(), lanes.end(), warp * kWarp);
    std::shuffle(lanes.begin(), lanes.end(), random);
    all.insert(all.end(), lanes.begin(), lanes.end());
  }
  return all;
}

// `first`: the block of rank 0.
void beginCluster(Dim3 first) {
  machine.undelivered.clear();
  machine.clusterBarrier = {};
  for (size_t rank = 0; rank < machine.cluster.size(); rank++) {
    machine.cluster[rank] = std::make_unique<Block>();
    Block& block = *machine.cluster[rank];
    block.rank = static_cast<int>(rank);
    block.warps.resize(machine.size / kWarp + 1);
    block.warpgroups.resize(machine.size / kMembers + 1);
    poisonShared(block.rank, machine.sharedBytes);
    const Dim3& shape = machine.block;
    for (size_t i = 0; i < machine.size; i++) {
      ThreadFiber& thread = *machine.threads[rank * machine.size + i];
      const unsigned at = static_cast<unsigned>(i);
      thread.block = &block;
      thread.position = {.thread = {at % shape.x, at / shape.x % shape.y, at / (shape.x * shape.y)},
                         .block = {first.x + static_cast<unsigned>(rank), first.y, first.z},
                         .linear = static_cast<int>(i)};
      thread.finished = thread.waited = false;
      thread.counter = nullptr;
      thread.states.clear();
      prepare(thread.fiber, thread.stack, threadMain, &thread);
    }
  }
}

std::string whoWaits() {
  std::string text;
  for (size_t i = 0; i < machine.size * machine.cluster.size(); i++) {
    const ThreadFiber& thread = *machine.threads[i];
    if (thread.finished) continue;
    const bool again = i > 0 && !machine.threads[i - 1]->finished &&
                       machine.threads[i - 1]->what == thread.what && i % kWarp != 0;
    if (!again) text += "\n  " + describe(thread) + " waits at " + thread.what;
  }
  return text;
}

// One turn for each of these threads that can go on; how many have, and how many came to their end.
struct Progress {
  size_t moved = 0, finished = 0;
};

Progress takeTurns(const std::vector<size_t>& turns, size_t begin, size_t end) {
  Progress progress;
  for (size_t at = begin; at < end && machine.fault.empty(); at++) {
    ThreadFiber& thread = *machine.threads[turns[at]];
    if (thread.finished || (thread.counter && *thread.counter == thread.seen)) continue;
    thread.counter = nullptr;
    machine.running = &thread;
    machine.current = thread.block;
    if (machine.first && !thread.waited && thread.position.lane() == 0) setInReach(false);
    switchFiber(machine.scheduler, thread.fiber);
    setInReach(true);
    machine.running = nullptr;
    progress.moved++;
    if (thread.finished) progress.finished++;
  }
  return progress;
}

// In half of the clusters threads take turns one by one. In the others a warp goes on alone for as
// long as it can, so that it gets as far ahead of the rest as the barriers allow: one that is
// missing shows in one way or the other.
bool runCluster(Dim3 first, std::mt19937_64& random) {
  beginCluster(first);
  size_t left = machine.size * machine.cluster.size();
  const std::vector<size_t> turns = order(random, left);
  const bool ahead = random() % 2 == 0;
  while (left > 0) {
    bool moved = false;
    for (size_t begin = 0, end = 0; begin < turns.size(); begin = end) {
      while (end < turns.size() && turns[end] / kWarp == turns[begin] / kWarp) end++;
      Progress progress;
      do {
        progress = takeTurns(turns, begin, end);
        if (!machine.fault.empty()) return false;
        left -= progress.finished;
        moved = moved || progress.moved > 0;
      } while (ahead && progress.moved > 0);
    }
    if (moved) continue;
    if (machine.undelivered.empty()) {
      record("no thread can go on:" + whoWaits());
      return false;
    }
    const auto work = std::move(machine.undelivered.front());
    machine.undelivered.pop_front();
    work();
    if (!machine.fault.empty()) return false;
  }
  // What nobody waited for still happens.
  for (const auto& work : machine.undelivered) work();
  machine.undelivered.clear();
  for (const auto& block : machine.cluster) {
    if (machine.fault.empty() && !sharedIsWhole(block->rank)) {
      record("wrote beyond the end of shared memory");
    }
  }
  return machine.fault.empty();
}

Gathering& gathering(std::vector<std::unique_ptr<Gathering>>& all, const Mask& mask) {
  for (const auto& one : all) {
    if (one->mask == mask) return *one;
  }
  all.push_back(std::make_unique<Gathering>());
  all.back()->mask = mask;
  return *all.back();
}

void gather(Gathering& g, int member, const char* name, void* argument, Together together) {
  const bool first = g.arrived == Mask{};
  if (first) g.name = name;
  if (std::strcmp(g.name, name) != 0) {
    fault(std::string("some threads of a warp are at ") + g.name + ", others at " + name);
  }
  g.arrived.add(member);
  g.arguments[member] = argument;
  if (!(g.arrived == g.mask)) return waitForChange(&g.generation, g.generation, name);
  g.arrived = {};
  together(g.arguments);
  g.generation++;
}

void arrive(Barrier& b, bool wait, const char* what) {
  const uint64_t generation = b.generation;
  if (++b.arrived == b.expected) {
    b.arrived = 0;
    b.generation++;
  } else if (wait) {
    waitForChange(&b.generation, generation, what);
  }
}

}  // namespace

const Position& position() { return machine.running->position; }
Dim3 gridDim() { return machine.grid; }
Dim3 blockDim() { return machine.block; }
int threadsOfBlock() { return static_cast<int>(machine.size); }
size_t sharedBytes() { return machine.sharedBytes; }
const std::string& lastFault() { return machine.fault; }

bool run(const char* kernel, Dim3 grid, Dim3 block, int cluster, size_t sharedBytes,
         const std::function<void()>& body) {
  machine.kernel = kernel;
  machine.grid = grid;
  machine.block = block;
  machine.body = &body;
  machine.size = block.count();
  machine.sharedBytes = sharedBytes;
  machine.fault.clear();
  machine.cluster.resize(static_cast<size_t>(cluster));
  while (machine.threads.size() < machine.size * machine.cluster.size()) {
    machine.threads.push_back(std::make_unique<ThreadFiber>());
    machine.threads.back()->stack = allocateStack();
  }
  const SignalGuard guard;
  std::mt19937_64 random(seed() * 1000003 + machine.launches++);
  const unsigned width = grid.x / static_cast<unsigned>(cluster);  // clusters in a row
  std::vector<size_t> clusters(size_t{width} * grid.y * grid.z);
  std::iota(clusters.begin(), clusters.end(), 0);
  std::shuffle(clusters.begin(), clusters.end(), random);
  machine.first = machine.known.insert(kernel).second;
  for (const size_t i : clusters) {
    const unsigned at = static_cast<unsigned>(i);
    const Dim3 first = {at % width * static_cast<unsigned>(cluster), at / width % grid.y,
                        at / (width * grid.y)};
    try {
      if (!runCluster(first, random)) return false;
    } catch (const SchedulerFault&) {
      return false;
    }
    machine.first = false;
  }
  return true;
}

void awaitPrevious() {
  machine.running->waited = true;
  setInReach(true);
}

void requireWait(const char* what) {
  if (machine.running && !machine.running->waited) {
    fault(std::string(what) + " global memory before awaitPrevious (griddepcontrol.wait)");
  }
}

void fault(const std::string& what) {
  record(what);
  if (!machine.running) throw SchedulerFault();
  leave();
}

void waitForChange(const uint64_t* counter, uint64_t seen, const char* what) {
  ThreadFiber& thread = *machine.running;
  thread.counter = counter;
  thread.seen = seen;
  thread.what = what;
  switchFiber(thread.fiber, machine.scheduler);
}

void warpOperation(uint32_t mask, const char* name, void* argument, Together together) {
  const Position& at = position();
  if ((mask >> at.lane() & 1) == 0) fault(std::string(name) + ": the lane is not in its own mask");
  Gathering& g = gathering(machine.current->warps[static_cast<size_t>(at.warp())], {.low = mask});
  gather(g, at.lane(), name, argument, together);
}

void warpgroupOperation(const char* name, void* argument, Together together) {
  const int thread = position().linear;
  Gathering& g = gathering(machine.current->warpgroups[static_cast<size_t>(thread / kMembers)],
                           {.low = ~uint64_t{0}, .high = ~uint64_t{0}});
  gather(g, thread % kMembers, name, argument, together);
}

void barrier(int number, int threads, bool wait) {
  if (number < 0 || number >= kBarriers || threads % kWarp != 0 || threads > threadsOfBlock()) {
    // A whole block need not be whole warps.
    if (number != 0 || threads != threadsOfBlock()) fault("no such barrier");
  }
  Barrier& b = machine.current->barriers[number];
  if (b.arrived > 0 && b.expected != threads) fault("a barrier with two numbers of threads");
  b.expected = threads;
  arrive(b, wait, "a barrier");
}

int clusterSize() { return static_cast<int>(machine.cluster.size()); }
int clusterRank() { return machine.current->rank; }

void clusterBarrier() {
  machine.clusterBarrier.expected = threadsOfBlock() * clusterSize();
  arrive(machine.clusterBarrier, /*wait=*/true, "a barrier of the cluster");
}

void inBlock(int rank, const std::function<void()>& work) {
  if (rank < 0 || rank >= clusterSize()) fault("no such block in the cluster");
  Block* const before = std::exchange(machine.current, machine.cluster[rank].get());
  work();
  machine.current = before;
}

void deliverLater(std::function<void()> work) { machine.undelivered.push_back(std::move(work)); }

void* findState(const void* key, bool ofThread) {
  return (ofThread ? machine.running->states : machine.current->states).find(key);
}

void addState(const void* key, bool ofThread, void* state, void (*destroy)(void*)) {
  (ofThread ? machine.running->states : machine.current->states).add({key, state, destroy});
}

}  // namespace dit::simt

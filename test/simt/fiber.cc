#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#ifndef __x86_64__
#error "the emulator switches fibers by hand: x86-64 only"
#endif

namespace dit::simt {

namespace {

constexpr size_t kPage = 4096;

}  // namespace

char* allocateStack() {
  void* const memory = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<char*>(memory) + kPage;
}

// What a function must find unchanged when it returns: rbx, rbp, r12 to r15 and the control words
// of SSE and x87; everything else the compiler takes for lost across the call.
asm(R"(
.text
.globl ditSimtSwitch
.hidden ditSimtSwitch
.type ditSimtSwitch, @function
ditSimtSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  subq $8, %rsp
  stmxcsr (%rsp)
  fnstcw 4(%rsp)
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  ldmxcsr (%rsp)
  fldcw 4(%rsp)
  addq $8, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ditSimtSwitch, .-ditSimtSwitch

.globl ditSimtStart
.hidden ditSimtStart
.type ditSimtStart, @function
ditSimtStart:
  movq %r12, %rdi
  callq *%r13
  ud2
.size ditSimtStart, .-ditSimtStart
)");

extern "C" void ditSimtSwitch(void** from, void* to);
extern "C" void ditSimtStart();

void prepare(Fiber& fiber, char* stack, void (*entry)(void*), void* argument) {
  // As ditSimtSwitch leaves it: control words, r15 .. r12, rbx, rbp, the address to go on at.
  auto* const top = reinterpret_cast<uint64_t*>(stack + kStackBytes);
  uint64_t* const frame = top - 10;
  std::memset(frame, 0, 10 * sizeof(uint64_t));
  uint32_t control[2] = {};
  asm volatile("stmxcsr %0" : "=m"(control[0]));
  uint16_t x87 = 0;
  asm volatile("fnstcw %0" : "=m"(x87));
  control[1] = x87;
  std::memcpy(frame, control, sizeof(control));
  frame[3] = reinterpret_cast<uint64_t>(entry);     // r13
  frame[4] = reinterpret_cast<uint64_t>(argument);  // r12
  frame[7] = reinterpret_cast<uint64_t>(&ditSimtStart);
  fiber.stackPointer = frame;
}

void switchFiber(Fiber& from, const Fiber& to) {
  ditSimtSwitch(&from.stackPointer, to.stackPointer);
}

}  // namespace dit::simt

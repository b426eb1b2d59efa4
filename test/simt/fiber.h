#pragma once

#include <cstddef>

// Threads of execution that change hands only when they say so, on stacks of their own. x86-64 with
// the System V calling convention.

namespace dit::simt {

// The saved stack pointer of something that does not run now; the rest lies on its stack.
struct Fiber {
  void* stackPointer = nullptr;
};

// Stacks of `kStackBytes`, each above a guard page.
constexpr size_t kStackBytes = 256 << 10;
char* allocateStack();

// Makes `fiber` call entry(argument) when it is switched to; entry must not return.
void prepare(Fiber& fiber, char* stack, void (*entry)(void*), void* argument);

// Goes on with `to`; returns when something switches to `from`.
void switchFiber(Fiber& from, const Fiber& to);

}  // namespace dit::simt

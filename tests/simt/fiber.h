// A stack of its own for each CUDA thread, the switch between two of them, and what the sanitizers
// have to be told of it.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN(...) __VA_ARGS__
#else
#define SIMT_ASAN(...)
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define SIMT_TSAN(...) __VA_ARGS__
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#else
#define SIMT_TSAN(...)
#endif

namespace simt {

// Hides the machine's own memory accesses from ThreadSanitizer.
struct Quiet {
  Quiet() { SIMT_TSAN(AnnotateIgnoreReadsBegin("", 0); AnnotateIgnoreWritesBegin("", 0)); }
  ~Quiet() { SIMT_TSAN(AnnotateIgnoreReadsEnd("", 0); AnnotateIgnoreWritesEnd("", 0)); }
  Quiet(const Quiet&) = delete;
};

constexpr size_t kStackBytes = 64 << 10;

// Where a fiber stands. swapcontext makes a system call for the signal mask at every switch; on
// x86-64 six registers are all that has to move.
#if defined(__x86_64__)
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
struct Context {
  void* top = nullptr;
  void prepare(char* stack, void (*entry)()) {
    void** p = reinterpret_cast<void**>((uintptr_t(stack) + kStackBytes) & ~uintptr_t(15));
    *--p = nullptr;  // as after a call: the stack is 8 bytes off a multiple of 16
    *--p = reinterpret_cast<void*>(entry);
    top = p - 6;
    std::memset(top, 0, 6 * sizeof(void*));
  }
  void leave_for(Context& next) { simt_switch(&top, next.top); }
};
#else
struct Context {
  ucontext_t state;
  void prepare(char* stack, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = kStackBytes;
    state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  void leave_for(Context& next) { swapcontext(&state, &next.state); }
};
#endif

}  // namespace simt

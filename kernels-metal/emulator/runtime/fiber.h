// Fibers: switching between stacks.
#pragma once
#include <cstdint>

#if defined(__APPLE__)
#define FIBER_SYMBOL "_hymba_fiber_switch"
#else
#define FIBER_SYMBOL "hymba_fiber_switch"
#endif

/// Saves the callee-saved registers on the current stack and its pointer in `*from`, then switches to the stack `to`.
extern "C" void hymba_fiber_switch(void **from, void *to);

#if defined(__x86_64__)
asm(".text\n.globl " FIBER_SYMBOL "\n" FIBER_SYMBOL ":\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

/// Returns a stack whose first switch calls `start`.
inline void *fiber_prepare(char *stack_end, void (*start)()) {
    uint64_t *sp = reinterpret_cast<uint64_t *>(stack_end) - 1; // aligned as after a call
    sp[0] = 0; // return address of `start`, which does not return
    *--sp = reinterpret_cast<uint64_t>(start);
    return sp - 6;
}
#elif defined(__aarch64__)
asm(".text\n.globl " FIBER_SYMBOL "\n.p2align 2\n" FIBER_SYMBOL ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");

/// Returns a stack whose first switch calls `start`.
inline void *fiber_prepare(char *stack_end, void (*start)()) {
    uint64_t *sp = reinterpret_cast<uint64_t *>(stack_end) - 20;
    sp[11] = reinterpret_cast<uint64_t>(start); // x30
    return sp;
}
#else
#error "the emulator runs on x86-64 and aarch64"
#endif

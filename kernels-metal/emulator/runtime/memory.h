// Checks every memory access of a shader: bounds, write permission, and that a barrier separates it from conflicting accesses
// of other threads.
#pragma once
#include <string>

#include "runtime.h"

namespace emulator {

/// Ends the running fiber, and with it the dispatch.
void fail(const std::string &what);

/// Registers a variable of the program that shaders may read.
void allow_global(const void *p, size_t bytes);

void enter_dispatch(const hymba_emulator_dispatch &dispatch, const char *stacks, size_t stacks_bytes);
void enter_threadgroup(uint32_t linear, char *memory, size_t bytes);
void enter_thread(const Position &position);
void pass_threadgroup_barrier(uint32_t flags);
void pass_simdgroup_barrier(size_t simdgroup, uint32_t flags);

} // namespace emulator

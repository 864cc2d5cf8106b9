// The emulator's machine: a dispatch runs one threadgroup after the other, the threads of each as fibers that go on in
// lock-step per simdgroup. The shaders are compiled with the compiler's thread-sanitizer instrumentation, whose calls
// end here: every access to memory is checked.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

/// Where a thread is.
struct Position {
    uint32_t group[3];
    uint32_t thread_index, threads;
    uint32_t lane;
};

struct Launch;
using Entry = void (*)(const Launch &);

/// A kernel, by name; made before main.
struct Kernel {
    Kernel(const char *name, Entry entry, size_t args_size);
};

/// A function constant, by index; made before main.
struct Constant {
    Constant(uint32_t *value, uint32_t index);
};

/// Values that do not change and any kernel may read; made before main.
struct Table {
    Table(const void *values, size_t bytes);
};

const Position &position();
void *buffer(const Launch &launch, uint32_t index);
const void *args(const Launch &launch);
void *threadgroup_memory(const Launch &launch);

float sum(float v);
float greatest(float v);
bool any(bool v);
uint32_t shuffle_xor(uint32_t v, uint32_t mask);
void multiply(float a0, float a1, float b0, float b1, float &c0, float &c1);
void threadgroup_barrier(uint32_t flags);
void simdgroup_barrier(uint32_t flags);

} // namespace emulator

/// Memory that a dispatch may touch.
struct hymba_emulator_buffer {
    void *memory;
    size_t bytes;
    int writable;
};

struct hymba_emulator_dispatch {
    const char *kernel;
    const hymba_emulator_buffer *buffers; // by index; the arguments have the next one
    size_t n_buffers;
    const void *args;
    size_t args_bytes;
    const uint32_t *constants;
    size_t n_constants;
    uint32_t groups[3];
    uint32_t threads;
    size_t threadgroup_bytes;
};

/// Runs a dispatch. Returns 0, or 1 and what went wrong in `error`. One call at a time in a process.
extern "C" int hymba_emulator_run(const hymba_emulator_dispatch *dispatch, char *error, size_t error_bytes);

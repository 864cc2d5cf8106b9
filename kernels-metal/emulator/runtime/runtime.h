// The emulated GPU: a dispatch runs its threadgroups one after the other; the threads of each are fibers, in lock-step per
// simdgroup. The shaders are compiled with the compiler's thread-sanitizer instrumentation, whose calls
// end here: every access to memory is checked.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

/// Position of a thread in its dispatch.
struct Position {
    uint32_t group[3];
    uint32_t thread_index, threads;
    uint32_t lane;
};

struct Launch;
using Entry = void (*)(const Launch &);

/// A kernel, by name; created before main.
struct Kernel {
    Kernel(const char *name, Entry entry, size_t args_size);
};

/// A function constant, by index; created before main.
struct Constant {
    Constant(uint32_t *value, uint32_t index);
};

/// Constant values that any kernel may read; created before main.
struct Table {
    Table(const void *values, size_t bytes);
};

const Position &position();
void *buffer(const Launch &launch, uint32_t index);
const void *args(const Launch &launch);
void *threadgroup_memory(const Launch &launch);

float sum(float v);
float maximum(float v);
bool any(bool v);
uint32_t shuffle_xor(uint32_t v, uint32_t mask);
void multiply(float a0, float a1, float b0, float b1, float &c0, float &c1);
void threadgroup_barrier(uint32_t flags);
void simdgroup_barrier(uint32_t flags);

} // namespace emulator

/// Memory that a dispatch may access.
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

/// Runs a dispatch. Returns 0, or 1 and a message in `error`. Only one call at a time per process.
extern "C" int hymba_emulator_run(const hymba_emulator_dispatch *dispatch, char *error, size_t error_bytes);

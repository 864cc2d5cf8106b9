// Threads, simdgroups and barriers of the emulator.
#pragma once
#include "../runtime/runtime.h"

namespace metal {

inline uint shim_lane() {
    return emulator::position().lane;
}
inline float simd_sum(float v) {
    return emulator::sum(v);
}
inline float simd_max(float v) {
    return emulator::maximum(v);
}
inline bool simd_any(bool v) {
    return emulator::any(v);
}
inline float simd_shuffle_xor(float v, ushort mask) {
    return as_type<float>(emulator::shuffle_xor(as_type<uint>(v), mask));
}
inline uint simd_shuffle_xor(uint v, ushort mask) {
    return emulator::shuffle_xor(v, mask);
}
inline void shim_multiply(float a0, float a1, float b0, float b1, float &c0, float &c1) {
    emulator::multiply(a0, a1, b0, b1, c0, c1);
}
inline void threadgroup_barrier(mem_flags flags) {
    emulator::threadgroup_barrier(uint(flags));
}
inline void simdgroup_barrier(mem_flags flags) {
    emulator::simdgroup_barrier(uint(flags));
}

} // namespace metal

// ---- building blocks of the generated entry points

using ShimLaunch = emulator::Launch;
#define SHIM_CONSTANT(type, name, index) \
    static type name;                    \
    static emulator::Constant shim_constant_##name(&name, index);
#define SHIM_TABLE(type, name, n)                                         \
    extern const type name[n];                                            \
    static emulator::Table shim_table_##name(name, sizeof(const type[n])); \
    const type name[n]
#define SHIM_KERNEL(name) static void shim_run_##name(const ShimLaunch &launch)
#define SHIM_REGISTER(name, args_size) static emulator::Kernel shim_kernel_##name(#name, shim_run_##name, args_size);

inline void *shim_buffer(const ShimLaunch &launch, uint index) {
    return emulator::buffer(launch, index);
}
inline const void *shim_args(const ShimLaunch &launch) {
    return emulator::args(launch);
}
inline void *shim_threadgroup(const ShimLaunch &launch) {
    return emulator::threadgroup_memory(launch);
}
inline metal::uint3 shim_threadgroup_position_in_grid(const ShimLaunch &) {
    const auto &p = emulator::position();
    return metal::uint3{p.group[0], p.group[1], p.group[2]};
}
inline metal::uint3 shim_thread_position_in_grid(const ShimLaunch &) {
    const auto &p = emulator::position();
    return metal::uint3{p.group[0] * p.threads + p.thread_index, p.group[1], p.group[2]};
}
inline uint shim_thread_index_in_threadgroup(const ShimLaunch &) {
    return emulator::position().thread_index;
}
inline uint shim_thread_index_in_simdgroup(const ShimLaunch &) {
    return emulator::position().lane;
}
inline uint shim_simdgroup_index_in_threadgroup(const ShimLaunch &) {
    return emulator::position().thread_index / 32;
}
inline uint shim_simdgroups_per_threadgroup(const ShimLaunch &) {
    return emulator::position().threads / 32;
}

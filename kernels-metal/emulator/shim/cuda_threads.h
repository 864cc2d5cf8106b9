// Threads, simdgroups and barriers on a GPU with warps of 32.
#pragma once

namespace metal {

constexpr unsigned SHIM_ALL = 0xffffffff;

__device__ inline uint shim_lane() {
    return threadIdx.x % 32;
}
__device__ inline float simd_sum(float v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(SHIM_ALL, v, step);
    return v;
}
__device__ inline float simd_max(float v) {
    for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(SHIM_ALL, v, step));
    return v;
}
__device__ inline bool simd_any(bool v) {
    return __any_sync(SHIM_ALL, v) != 0;
}
__device__ inline float simd_shuffle_xor(float v, ushort mask) {
    return __shfl_xor_sync(SHIM_ALL, v, mask);
}
__device__ inline uint simd_shuffle_xor(uint v, ushort mask) {
    return __shfl_xor_sync(SHIM_ALL, v, mask);
}
/// Multiplies 8×8 matrices by shuffles: for correct values, not for speed.
__device__ inline void shim_multiply(float a0, float a1, float b0, float b1, float &c0, float &c1) {
    const uint row = shim_lane() / 4, col = shim_lane() % 4;
    for (uint k = 0; k < 8; k += 2) {
        const float even = __shfl_sync(SHIM_ALL, a0, row * 4 + k / 2), odd = __shfl_sync(SHIM_ALL, a1, row * 4 + k / 2);
        c0 += even * __shfl_sync(SHIM_ALL, b0, k * 4 + col);
        c1 += even * __shfl_sync(SHIM_ALL, b1, k * 4 + col);
        c0 += odd * __shfl_sync(SHIM_ALL, b0, k * 4 + 4 + col);
        c1 += odd * __shfl_sync(SHIM_ALL, b1, k * 4 + 4 + col);
    }
}
__device__ inline void threadgroup_barrier(mem_flags) {
    __syncthreads();
}
__device__ inline void simdgroup_barrier(mem_flags) {
    __syncwarp();
}

} // namespace metal

// ---- building blocks of the generated entry points

/// A launch's parameters.
struct ShimLaunch {
    void *buffers[12];
    alignas(16) unsigned char args[64];
};

/// A kernel, by name; created before main.
struct ShimKernel {
    ShimKernel(const char *name, const void *entry, size_t args_size);
};

/// A function constant, by index; created before main.
struct ShimConstant {
    ShimConstant(const void *symbol, unsigned index);
};

#define SHIM_CONSTANT(type, name, index) \
    static __constant__ type name;       \
    static ShimConstant shim_constant_##name(&name, index);
#define SHIM_TABLE(type, name, n) static __device__ const type name[n]
#define SHIM_KERNEL(name) static __global__ void shim_run_##name(const __grid_constant__ ShimLaunch launch)
#define SHIM_REGISTER(name, args_size) \
    static ShimKernel shim_kernel_##name(#name, reinterpret_cast<const void *>(shim_run_##name), args_size);

extern __shared__ metal::float4 shim_shared[];

__device__ inline void *shim_buffer(const ShimLaunch &launch, uint index) {
    return launch.buffers[index];
}
__device__ inline const void *shim_args(const ShimLaunch &launch) {
    return launch.args;
}
__device__ inline void *shim_threadgroup(const ShimLaunch &) {
    return (void *)shim_shared;
}
__device__ inline metal::uint3 shim_threadgroup_position_in_grid(const ShimLaunch &) {
    return metal::uint3{blockIdx.x, blockIdx.y, blockIdx.z};
}
__device__ inline metal::uint3 shim_thread_position_in_grid(const ShimLaunch &) {
    return metal::uint3{blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y, blockIdx.z};
}
__device__ inline uint shim_thread_index_in_threadgroup(const ShimLaunch &) {
    return threadIdx.x;
}
__device__ inline uint shim_thread_index_in_simdgroup(const ShimLaunch &) {
    return threadIdx.x % 32;
}
__device__ inline uint shim_simdgroup_index_in_threadgroup(const ShimLaunch &) {
    return threadIdx.x / 32;
}
__device__ inline uint shim_simdgroups_per_threadgroup(const ShimLaunch &) {
    return blockDim.x / 32;
}

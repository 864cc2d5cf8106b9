// Kernels with one fault each, for the emulator to find; `fault` selects it, 0 is none.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

struct FaultArgs {
    uint n, fault;
};

/// y[i] = x[i] + x[(i + 1) % threads], through threadgroup memory.
kernel void faulty_neighbors(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                              constant FaultArgs &a [[buffer(2)]], threadgroup float *shared [[threadgroup(0)]],
                              uint tid [[thread_index_in_threadgroup]],
                              uint simds [[simdgroups_per_threadgroup]]) {
    const uint threads = 32 * simds, next = (tid + 1) % threads;
    if (a.fault != 1 || tid != 5) shared[tid] = x[tid]; // 1: one value is never written
    if (a.fault == 2) simdgroup_barrier(mem_flags::mem_threadgroup); // not enough between simdgroups
    else if (a.fault == 3) threadgroup_barrier(mem_flags::mem_device); // for other memory
    else if (a.fault != 4) threadgroup_barrier(mem_flags::mem_threadgroup);
    const float sum = shared[tid] + shared[next];
    if (a.fault == 5) shared[tid] = sum; // which the neighbor may not have read
    y[tid] = sum;
}

kernel void faulty_bounds(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                          constant FaultArgs &a [[buffer(2)]], threadgroup float *shared [[threadgroup(0)]],
                          uint3 position [[thread_position_in_grid]], uint tid [[thread_index_in_threadgroup]]) {
    const uint i = position.x;
    float v = i < a.n || a.fault == 1 ? x[i] : 0.0f;
    if (a.fault == 2 && i == 0) v = x[-1];
    if (a.fault == 3) *(device float *)x = v; // read-only
    if (a.fault == 4 && tid == 3) shared[64] = v;
    if (a.fault == 5 && i == 0) *(device float4 *)y = *(device const float4 *)(x + 1); // not aligned
    if (i < a.n || a.fault == 6) y[a.fault == 7 ? i / 2 : i] = v; // 7: two threads write one value
    if (a.fault == 8 && i > 32) y[i] = y[i - 32] + v;             // another simdgroup's value
}

kernel void faulty_barriers(device float *y [[buffer(0)]], constant FaultArgs &a [[buffer(1)]],
                            uint tid [[thread_index_in_threadgroup]]) {
    float v = float(tid);
    if (a.fault == 1 && tid < 7) v = simd_sum(v); // not all lanes participate
    if (a.fault == 2 && tid < 32) threadgroup_barrier(mem_flags::mem_threadgroup);
    if (a.fault == 3) v = tid % 2 == 0 ? simd_sum(v) : simd_max(v);
    y[tid] = v;
}

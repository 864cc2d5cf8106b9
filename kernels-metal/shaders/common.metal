// Shared by all shader files. The files are compiled as one source, this one first.
//
// Conventions: shapes are [slowest, ..., fastest]; strides are in values; activations and states are float. A
// threadgroup is one-dimensional and a multiple of 32 threads. Every simd_ operation is reached by all 32 lanes, and
// every barrier by all threads, regardless of the data. No kernel relies on other threadgroups of its dispatch.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

/// Storage formats of weights, with the numbers of the CPU kernels' hk_type. X8 and above: eight rows interleaved.
enum Format : uint {
    F32 = 0, F16 = 1, BF16 = 2, Q8_0 = 3, Q4_0 = 4, Q4_1 = 5, Q5_0 = 6, Q5_1 = 7, IQ4_NL = 8, MXFP4 = 9,
    X8 = 16, Q8_0X8 = X8 + Q8_0, Q4_0X8 = X8 + Q4_0, Q4_1X8 = X8 + Q4_1, Q5_0X8 = X8 + Q5_0, Q5_1X8 = X8 + Q5_1,
    IQ4_NLX8 = X8 + IQ4_NL, MXFP4X8 = X8 + MXFP4
};

// The shape of the model, fixed when a pipeline is created. Each kernel documents those that it uses.
constant uint FORMAT [[function_constant(0)]];     // of the weight matrix
constant uint ALIGNED [[function_constant(1)]];    // 1: rows of activations and of the cache start at multiples of 4
constant uint CACHE_HALF [[function_constant(2)]]; // 1: keys and values are half, 0: float
constant uint KEY_DIM [[function_constant(3)]];
constant uint VALUE_DIM [[function_constant(4)]];
constant uint GROUP [[function_constant(5)]];      // query heads per KV head
constant uint KV_HEADS [[function_constant(6)]];
constant uint STATES [[function_constant(7)]];     // per channel of the selective scan
constant uint LANES [[function_constant(8)]];      // lanes per channel: STATES rounded up to a power of two
constant uint TAPS [[function_constant(9)]];       // of the convolution

inline float silu(float x) {
    return x / (1.0f + precise::exp(-x));
}

/// log(1 + exp(x)), accurate to a few ulp for any x.
inline float softplus(float x) {
    const float e = precise::exp(-fabs(x));
    const float one_more = 1.0f + e;
    // log1p: corrects the rounding of 1 + e
    const float log1p = one_more == 1.0f ? e : precise::log(one_more) * (e / (one_more - 1.0f));
    return max(x, 0.0f) + log1p;
}

/// Values i .. i + 3 of a row of n; zeros after its end.
inline float4 load4(device const float *row, uint i, uint n) {
    if (ALIGNED != 0 && i + 4 <= n) return *(device const float4 *)(row + i);
    return float4(i < n ? row[i] : 0.0f, i + 1 < n ? row[i + 1] : 0.0f, i + 2 < n ? row[i + 2] : 0.0f,
                  i + 3 < n ? row[i + 3] : 0.0f);
}

/// The sum of v over the threadgroup. `shared` holds one value per simdgroup.
inline float group_sum(float v, threadgroup float *shared, uint lane, uint simd, uint simds) {
    v = simd_sum(v);
    if (simds == 1) return v;
    threadgroup_barrier(mem_flags::mem_threadgroup); // all threads have read the previous sum
    if (lane == 0) shared[simd] = v;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < simds ? shared[lane] : 0.0f);
}

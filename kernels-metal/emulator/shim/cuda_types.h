// CUDA's half type and function qualifier.
#pragma once
#include <cuda_fp16.h>
#define SHIM_FN __device__

/// Byte n of a word as a float: placed in the lowest bits of 2^23, which is faster than a conversion.
template <int n>
__device__ inline float shim_byte(unsigned word) {
    return __uint_as_float(__byte_perm(word, 0x4b000000, 0x7440 + n)) - 8388608.0f;
}

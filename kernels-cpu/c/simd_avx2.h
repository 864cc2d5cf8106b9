/* Vectors of eight floats with AVX2, FMA and F16C: the primitives that the bodies in vector/ use. */
#ifndef HYMBA_SIMD_H
#define HYMBA_SIMD_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "hymba_kernels.h"

/* Bodies are instantiated with constant sizes: without inlining, their accumulators would be in memory. */
#define HK_INLINE static inline __attribute__((always_inline))

/* Optimization barriers: force a vector, or a size or pointer, into a register and hide its value from the compiler.
 */
#ifndef OPT_BARRIER
#define OPT_BARRIER(x) __asm__ volatile("" : "+v"(x))
#endif
#define OPT_BARRIER_SIZE(x) __asm__ volatile("" : "+r"(x))

/* Prefetches lines that are needed some microseconds later into L2. */
HK_INLINE void prefetch_l2(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_T1);
}

/* Prefetches a line that is needed immediately into L1. */
HK_INLINE void prefetch_l1(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }

/* Prefetches a line for writing; a no-op on CPUs without support. */
HK_INLINE void prefetch_write(const void *p) { __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p)); }

#define VF_LANES 8
typedef __m256 vf;

HK_INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
HK_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
HK_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
HK_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
HK_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
HK_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
HK_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
HK_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
HK_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
HK_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
HK_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }   /* a*b + c */
HK_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); } /* c - a*b */
HK_INLINE vf vf_abs(vf x) { return _mm256_andnot_ps(vf_set1(-0.0f), x); }

/* the first n < 8 lanes; the others are zero, and no memory beyond them is read */
HK_INLINE __m256i vf_mask(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
HK_INLINE vf vf_load_n(const float *p, size_t n) { return _mm256_maskload_ps(p, vf_mask(n)); }
HK_INLINE void vf_store_n(float *p, size_t n, vf x) { _mm256_maskstore_ps(p, vf_mask(n), x); }

/* the last n < 8 lanes of x, other lanes zero */
HK_INLINE vf vf_last(vf x, size_t n) { return _mm256_andnot_ps(_mm256_castsi256_ps(vf_mask(VF_LANES - n)), x); }

HK_INLINE vf vf_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
HK_INLINE vf vf_load_bf16(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
HK_INLINE float f16_scale(const void *p) { /* one half float */
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return _cvtsh_ss(bits);
}
HK_INLINE vf vf_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
HK_INLINE void vf_store_f16(uint16_t *p, vf x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

HK_INLINE float vf_reduce_sum(vf x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
HK_INLINE float vf_reduce_max(vf x) { /* the largest lane */
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* x * 2^k with the integer k in the low bits of t; x and the result are normal numbers */
HK_INLINE vf vf_ldexp(vf x, vf t) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}

/* lanes 0 + 2 and 1 + 3 of each half of two: the first step of `vf_sums` */
HK_INLINE vf vf_pair(vf a, vf b) { return vf_add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)); }
/* the sum of the lanes of each of eight, in pairs: (0 + 2) + (1 + 3), and those of the other half */
HK_INLINE vf vf_sums_of_pairs(const vf pair[4]) {
    vf quad[2];
    for (int i = 0; i < 2; i++)
        quad[i] = vf_add(_mm256_shuffle_ps(pair[2 * i], pair[2 * i + 1], 0x44),
                         _mm256_shuffle_ps(pair[2 * i], pair[2 * i + 1], 0xee));
    return vf_add(_mm256_permute2f128_ps(quad[0], quad[1], 0x20), _mm256_permute2f128_ps(quad[0], quad[1], 0x31));
}

/* transposes 8 by 8 */
HK_INLINE void vf_transpose(vf r[8]) {
    vf a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

#endif

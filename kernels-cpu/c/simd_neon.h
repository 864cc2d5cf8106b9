/* Vectors of eight floats with Advanced SIMD, in two registers: the primitives that the bodies in vector/ use. Every
 * operation has the same bits as in simd_avx2.h, except for NaNs: here a minimum or maximum with a NaN is a NaN.
 */
#ifndef HYMBA_SIMD_H
#define HYMBA_SIMD_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "hymba_kernels.h"

/* Bodies are instantiated with constant sizes: without inlining, their accumulators would be in memory. */
#define HK_INLINE static inline __attribute__((always_inline))

/* fully unrolls the next loop */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Prefetches lines that are needed some microseconds later into L2. */
HK_INLINE void prefetch_l2(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i, 0, 2);
}

/* Prefetches a line that is needed immediately into L1. */
HK_INLINE void prefetch_l1(const void *p) { __builtin_prefetch(p); }

/* optimization barrier: hides a vector's value from the compiler */
#define OPT_BARRIER(x) __asm__ volatile("" : "+w"((x).lo), "+w"((x).hi))

#define VF_LANES 8
typedef struct vf {
    float32x4_t lo, hi;
} vf;

HK_INLINE vf vf_of(float32x4_t lo, float32x4_t hi) { return (vf){lo, hi}; }
HK_INLINE vf vf_set1(float x) { return vf_of(vdupq_n_f32(x), vdupq_n_f32(x)); }
HK_INLINE vf vf_zero(void) { return vf_set1(0); }
HK_INLINE vf vf_load(const float *p) { return vf_of(vld1q_f32(p), vld1q_f32(p + 4)); }
HK_INLINE void vf_store(float *p, vf x) { vst1q_f32(p, x.lo), vst1q_f32(p + 4, x.hi); }
HK_INLINE vf vf_add(vf a, vf b) { return vf_of(vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)); }
HK_INLINE vf vf_sub(vf a, vf b) { return vf_of(vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)); }
HK_INLINE vf vf_mul(vf a, vf b) { return vf_of(vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)); }
HK_INLINE vf vf_div(vf a, vf b) { return vf_of(vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)); }
HK_INLINE vf vf_min(vf a, vf b) { return vf_of(vminq_f32(a.lo, b.lo), vminq_f32(a.hi, b.hi)); }
HK_INLINE vf vf_max(vf a, vf b) { return vf_of(vmaxq_f32(a.lo, b.lo), vmaxq_f32(a.hi, b.hi)); }
HK_INLINE vf vf_fma(vf a, vf b, vf c) { /* a*b + c */
    return vf_of(vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi));
}
HK_INLINE vf vf_fnma(vf a, vf b, vf c) { /* c - a*b */
    return vf_of(vfmsq_f32(c.lo, a.lo, b.lo), vfmsq_f32(c.hi, a.hi, b.hi));
}
HK_INLINE vf vf_abs(vf x) { return vf_of(vabsq_f32(x.lo), vabsq_f32(x.hi)); }

/* the first n <= 4 lanes; the others are zero, and no memory beyond them is read */
HK_INLINE float32x4_t quarter_load(const float *p, size_t n) {
    float32x4_t x = vdupq_n_f32(0);
    if (n >= 4) return vld1q_f32(p);
    if (n >= 1) x = vld1q_lane_f32(p, x, 0);
    if (n >= 2) x = vld1q_lane_f32(p + 1, x, 1);
    if (n >= 3) x = vld1q_lane_f32(p + 2, x, 2);
    return x;
}
HK_INLINE void quarter_store(float *p, size_t n, float32x4_t x) {
    if (n >= 4) {
        vst1q_f32(p, x);
        return;
    }
    if (n >= 1) vst1q_lane_f32(p, x, 0);
    if (n >= 2) vst1q_lane_f32(p + 1, x, 1);
    if (n >= 3) vst1q_lane_f32(p + 2, x, 2);
}

/* the first n < 8 lanes */
HK_INLINE vf vf_load_n(const float *p, size_t n) {
    return n < 4 ? vf_of(quarter_load(p, n), vdupq_n_f32(0)) : vf_of(vld1q_f32(p), quarter_load(p + 4, n - 4));
}
HK_INLINE void vf_store_n(float *p, size_t n, vf x) {
    quarter_store(p, n, x.lo);
    if (n > 4) quarter_store(p + 4, n - 4, x.hi);
}

/* the last n < 8 lanes of x, other lanes zero */
HK_INLINE vf vf_last(vf x, size_t n) {
    static const uint32_t lanes[VF_LANES] = {0, 1, 2, 3, 4, 5, 6, 7};
    const uint32x4_t first = vdupq_n_u32((uint32_t)(VF_LANES - n));
    const uint32x4_t lo = vcgeq_u32(vld1q_u32(lanes), first), hi = vcgeq_u32(vld1q_u32(lanes + 4), first);
    return vf_of(vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.lo), lo)),
                 vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.hi), hi)));
}

HK_INLINE uint16x8_t eight_u16(const void *p) { return vreinterpretq_u16_u8(vld1q_u8(p)); }

HK_INLINE vf vf_load_f16(const void *p) {
    const float16x8_t h = vreinterpretq_f16_u16(eight_u16(p));
    return vf_of(vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h));
}
HK_INLINE vf vf_load_bf16(const void *p) {
    const uint16x8_t h = eight_u16(p);
    return vf_of(vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)),
                 vreinterpretq_f32_u32(vshll_high_n_u16(h, 16)));
}
HK_INLINE float f16_scale(const void *p) { /* one half float */
    __fp16 half;
    memcpy(&half, p, sizeof half);
    return (float)half;
}
HK_INLINE vf vf_load_i8(const int8_t *p) {
    const int16x8_t v = vmovl_s8(vld1_s8(p));
    return vf_of(vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v)));
}
HK_INLINE void vf_store_f16(uint16_t *p, vf x) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.lo), x.hi)));
}

HK_INLINE float vf_reduce_sum(vf x) {
    const float32x4_t quad = vaddq_f32(x.lo, x.hi);
    return vpadds_f32(vadd_f32(vget_low_f32(quad), vget_high_f32(quad)));
}
HK_INLINE float vf_reduce_max(vf x) { return vmaxvq_f32(vmaxq_f32(x.lo, x.hi)); } /* the largest lane */

HK_INLINE float32x4_t quarter_ldexp(float32x4_t x, float32x4_t t) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vreinterpretq_s32_f32(t), 23)));
}
/* x * 2^k with the integer k in the low bits of t; x and the result are normal numbers */
HK_INLINE vf vf_ldexp(vf x, vf t) { return vf_of(quarter_ldexp(x.lo, t.lo), quarter_ldexp(x.hi, t.hi)); }

/* the lower halves of two, and the upper ones */
HK_INLINE float32x4_t low_halves(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
HK_INLINE float32x4_t high_halves(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

/* lanes 0 + 2 and 1 + 3 of each half of two: the first step of `vf_sums` */
HK_INLINE vf vf_pair(vf a, vf b) {
    return vf_of(vaddq_f32(vzip1q_f32(a.lo, b.lo), vzip2q_f32(a.lo, b.lo)),
                 vaddq_f32(vzip1q_f32(a.hi, b.hi), vzip2q_f32(a.hi, b.hi)));
}
HK_INLINE float32x4_t halves_sum(float32x4_t a, float32x4_t b) {
    return vaddq_f32(low_halves(a, b), high_halves(a, b));
}
/* the sum of the lanes of each of eight, in pairs: (0 + 2) + (1 + 3), and those of the other half */
HK_INLINE vf vf_sums_of_pairs(const vf pair[4]) {
    return vf_of(vaddq_f32(halves_sum(pair[0].lo, pair[1].lo), halves_sum(pair[0].hi, pair[1].hi)),
                 vaddq_f32(halves_sum(pair[2].lo, pair[3].lo), halves_sum(pair[2].hi, pair[3].hi)));
}

HK_INLINE void quarter_transpose(float32x4_t *a, float32x4_t *b, float32x4_t *c, float32x4_t *d) {
    const float32x4_t ab_lo = vtrn1q_f32(*a, *b), ab_hi = vtrn2q_f32(*a, *b);
    const float32x4_t cd_lo = vtrn1q_f32(*c, *d), cd_hi = vtrn2q_f32(*c, *d);
    *a = low_halves(ab_lo, cd_lo), *b = low_halves(ab_hi, cd_hi);
    *c = high_halves(ab_lo, cd_lo), *d = high_halves(ab_hi, cd_hi);
}
/* transposes 8 by 8 */
HK_INLINE void vf_transpose(vf r[8]) {
    for (int i = 0; i < 8; i += 4) {
        quarter_transpose(&r[i].lo, &r[i + 1].lo, &r[i + 2].lo, &r[i + 3].lo);
        quarter_transpose(&r[i].hi, &r[i + 1].hi, &r[i + 2].hi, &r[i + 3].hi);
    }
    for (int i = 0; i < 4; i++) {
        const float32x4_t swap = r[i].hi;
        r[i].hi = r[i + 4].lo;
        r[i + 4].lo = swap;
    }
}

#endif

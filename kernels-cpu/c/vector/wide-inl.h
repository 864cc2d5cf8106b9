/* Double-width vectors: one AVX-512 register, elsewhere a pair.
 *
 * Requires: simd_avx2.h or simd_neon.h. */
#ifndef HYMBA_WIDE_INL_H
#define HYMBA_WIDE_INL_H

#define VW_LANES (2 * VF_LANES)

#ifdef __AVX512F__

#define VW_WHOLE 1
typedef __m512 vw;
#define OPT_BARRIER_WIDE(x) OPT_BARRIER(x)

HK_INLINE vw vw_pair(vf a, vf b) {
    const __m512d low = _mm512_castpd256_pd512(_mm256_castps_pd(a));
    return _mm512_castpd_ps(_mm512_insertf64x4(low, _mm256_castps_pd(b), 1));
}
HK_INLINE vf vw_low(vw x) { return _mm512_castps512_ps256(x); }
HK_INLINE vf vw_high(vw x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
HK_INLINE vw vw_twice(vf x) { return _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_castps_pd(x))); }
HK_INLINE vw vw_zero(void) { return _mm512_setzero_ps(); }
HK_INLINE vw vw_set1(float x) { return _mm512_set1_ps(x); }
HK_INLINE vw vw_load(const float *p) { return _mm512_loadu_ps(p); }
HK_INLINE void vw_store(float *p, vw x) { _mm512_storeu_ps(p, x); }
HK_INLINE vw vw_add(vw a, vw b) { return _mm512_add_ps(a, b); }
HK_INLINE vw vw_sub(vw a, vw b) { return _mm512_sub_ps(a, b); }
HK_INLINE vw vw_mul(vw a, vw b) { return _mm512_mul_ps(a, b); }
HK_INLINE vw vw_min(vw a, vw b) { return _mm512_min_ps(a, b); }
HK_INLINE vw vw_max(vw a, vw b) { return _mm512_max_ps(a, b); }
HK_INLINE vw vw_fma(vw a, vw b, vw c) { return _mm512_fmadd_ps(a, b, c); }   /* a*b + c */
HK_INLINE vw vw_fnma(vw a, vw b, vw c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a*b */
HK_INLINE vw vw_ldexp(vw x, vw t) {
    const __m512i k = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), k));
}
HK_INLINE vw vw_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }

#else

#define VW_WHOLE 0
typedef struct vw {
    vf low, high;
} vw;
#define OPT_BARRIER_WIDE(x)    \
    do {                       \
        OPT_BARRIER((x).low);  \
        OPT_BARRIER((x).high); \
    } while (0)

HK_INLINE vw vw_pair(vf a, vf b) { return (vw){a, b}; }
HK_INLINE vf vw_low(vw x) { return x.low; }
HK_INLINE vf vw_high(vw x) { return x.high; }
HK_INLINE vw vw_twice(vf x) { return vw_pair(x, x); }
HK_INLINE vw vw_zero(void) { return vw_twice(vf_zero()); }
HK_INLINE vw vw_set1(float x) { return vw_twice(vf_set1(x)); }
HK_INLINE vw vw_load(const float *p) { return vw_pair(vf_load(p), vf_load(p + VF_LANES)); }
HK_INLINE void vw_store(float *p, vw x) { vf_store(p, x.low), vf_store(p + VF_LANES, x.high); }
HK_INLINE vw vw_add(vw a, vw b) { return vw_pair(vf_add(a.low, b.low), vf_add(a.high, b.high)); }
HK_INLINE vw vw_sub(vw a, vw b) { return vw_pair(vf_sub(a.low, b.low), vf_sub(a.high, b.high)); }
HK_INLINE vw vw_mul(vw a, vw b) { return vw_pair(vf_mul(a.low, b.low), vf_mul(a.high, b.high)); }
HK_INLINE vw vw_min(vw a, vw b) { return vw_pair(vf_min(a.low, b.low), vf_min(a.high, b.high)); }
HK_INLINE vw vw_max(vw a, vw b) { return vw_pair(vf_max(a.low, b.low), vf_max(a.high, b.high)); }
HK_INLINE vw vw_ldexp(vw x, vw t) { return vw_pair(vf_ldexp(x.low, t.low), vf_ldexp(x.high, t.high)); }
HK_INLINE vw vw_fma(vw a, vw b, vw c) { return vw_pair(vf_fma(a.low, b.low, c.low), vf_fma(a.high, b.high, c.high)); }
HK_INLINE vw vw_fnma(vw a, vw b, vw c) {
    return vw_pair(vf_fnma(a.low, b.low, c.low), vf_fnma(a.high, b.high, c.high));
}
HK_INLINE vw vw_load_f16(const void *p) { return vw_pair(vf_load_f16(p), vf_load_f16((const uint16_t *)p + VF_LANES)); }

#endif

#endif

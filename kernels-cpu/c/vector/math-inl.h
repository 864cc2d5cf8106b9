/* exp and functions based on it, on eight lanes. Polynomials are fitted for minimal relative error.
 *
 * Requires: wide-inl.h. */
#ifndef HYMBA_MATH_INL_H
#define HYMBA_MATH_INL_H

/* NaN must be the second operand of vf_max and vf_min, so that it propagates. */

/* Adding 1.5 * 2^23 rounds a small number to the nearest integer, which is in the low bits of the sum. */
#define ROUNDER 0x1.8p23f
#define LOG2_E 0x1.715476p+0f

/* For vector types `v`: vf, vw.
 *
 * e^x to 1 ulp: x = k ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, k into the exponent. Below -87.3 the result
 * stays near 1e-38, above 88.3 near 2e38: close enough to 0 and infinity for its uses.
 *
 * 2^x to 3 ulp, for x <= 127; below -126 the result stays near 1e-38. It adds in pairs: a long dependency chain would
 * fill the CPU's scheduler with waiting operations. */
#define DEFINE_EXP(v)                                                                                     \
    HK_INLINE v v##_exp(v x) {                                                                            \
        x = v##_min(v##_set1(88.3f), v##_max(v##_set1(-87.3f), x));                                       \
        const v t = v##_fma(x, v##_set1(LOG2_E), v##_set1(ROUNDER)), k = v##_sub(t, v##_set1(ROUNDER));   \
        v r = v##_fnma(k, v##_set1(0x1.62e4p-1f), x); /* ln 2 in two parts: k times the first is exact */ \
        r = v##_fnma(k, v##_set1(0x1.7f7d1cp-20f), r);                                                    \
        v p = v##_set1(0x1.6ae72p-10f);                                                                   \
        p = v##_fma(p, r, v##_set1(0x1.126794p-7f));                                                      \
        p = v##_fma(p, r, v##_set1(0x1.555822p-5f));                                                      \
        p = v##_fma(p, r, v##_set1(0x1.55541ap-3f));                                                      \
        p = v##_fma(p, r, v##_set1(0x1.fffffcp-2f));                                                      \
        p = v##_fma(p, r, v##_set1(1.0f));                                                                \
        p = v##_fma(p, r, v##_set1(1.0f));                                                                \
        return v##_ldexp(p, t);                                                                           \
    }                                                                                                     \
    HK_INLINE v v##_exp2(v x) {                                                                           \
        x = v##_max(v##_set1(-126.0f), x);                                                                \
        const v t = v##_add(x, v##_set1(ROUNDER)), r = v##_sub(x, v##_sub(t, v##_set1(ROUNDER)));         \
        const v r2 = v##_mul(r, r);                                                                       \
        const v high = v##_fma(v##_set1(0x1.5bba12p-10f), r, v##_set1(0x1.3cea88p-7f));                   \
        const v middle = v##_fma(v##_set1(0x1.c6b752p-5f), r, v##_set1(0x1.ebf9bcp-3f));                  \
        const v low = v##_fma(v##_set1(0x1.62e42ap-1f), r, v##_set1(1.0f));                               \
        return v##_ldexp(v##_fma(v##_fma(high, r2, middle), r2, low), t);                                 \
    }

DEFINE_EXP(vf)
DEFINE_EXP(vw)

/* the sum of the lanes of each of eight */
HK_INLINE vf vf_sums(const vf x[VF_LANES]) {
    vf pair[VF_LANES / 2];
    for (size_t i = 0; i < VF_LANES / 2; i++) pair[i] = vf_pair(x[2 * i], x[2 * i + 1]);
    return vf_sums_of_pairs(pair);
}

HK_INLINE vf vf_silu(vf x) { return vf_div(x, vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_zero(), x)))); }

/* ln(1 + e^x) = max(x, 0) + ln(1 + e), e = e^-|x|; ln(1 + e) = 2 artanh(z), z = e / (2 + e) <= 1/3 */
HK_INLINE vf vf_softplus(vf x) {
    const vf e = vf_exp(vf_sub(vf_zero(), vf_abs(x)));
    const vf z = vf_div(e, vf_add(e, vf_set1(2.0f)));
    const vf s = vf_mul(z, z);
    vf p = vf_set1(2.0f / 15);
    p = vf_fma(p, s, vf_set1(2.0f / 13));
    p = vf_fma(p, s, vf_set1(2.0f / 11));
    p = vf_fma(p, s, vf_set1(2.0f / 9));
    p = vf_fma(p, s, vf_set1(2.0f / 7));
    p = vf_fma(p, s, vf_set1(2.0f / 5));
    p = vf_fma(p, s, vf_set1(2.0f / 3));
    p = vf_fma(p, s, vf_set1(2.0f));
    return vf_fma(p, z, vf_max(vf_zero(), x));
}

#endif

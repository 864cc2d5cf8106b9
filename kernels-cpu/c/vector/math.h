/* exp and what is made of it, eight lanes at a time. Polynomials are fitted for the least relative error. */

/* Of vf_max and vf_min the second operand is the one that may be NaN: NaN goes through. */

/* Adding 1.5 * 2^23 rounds a small number to the nearest whole one, and leaves that in the low bits of the sum. */
#define ROUNDER 0x1.8p23f

/* e^x to 1 ulp: x = k ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, k into the exponent.
 * Below -87.3 the answer stays near 1e-38, above 88.3 near 2e38: close enough to 0 and infinity for what follows. */
HK_INLINE vf vf_exp(vf x) {
    x = vf_min(vf_set1(88.3f), vf_max(vf_set1(-87.3f), x));
    const vf t = vf_fma(x, vf_set1(0x1.715476p+0f), vf_set1(ROUNDER)), k = vf_sub(t, vf_set1(ROUNDER));
    vf r = vf_fnma(k, vf_set1(0x1.62e4p-1f), x); /* ln 2 in two parts: k times the first is exact */
    r = vf_fnma(k, vf_set1(0x1.7f7d1cp-20f), r);
    vf p = vf_set1(0x1.6ae72p-10f);
    p = vf_fma(p, r, vf_set1(0x1.126794p-7f));
    p = vf_fma(p, r, vf_set1(0x1.555822p-5f));
    p = vf_fma(p, r, vf_set1(0x1.55541ap-3f));
    p = vf_fma(p, r, vf_set1(0x1.fffffcp-2f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_ldexp(p, t);
}

/* 2^x to 3 ulp, for x <= 127; below -126 the answer stays near 1e-38. */
HK_INLINE vf vf_exp2(vf x) {
    x = vf_max(vf_set1(-126.0f), x);
    const vf t = vf_add(x, vf_set1(ROUNDER)), r = vf_sub(x, vf_sub(t, vf_set1(ROUNDER)));
    /* in pairs: a long chain would fill the CPU's queue with operations that wait for the one before */
    const vf r2 = vf_mul(r, r);
    const vf high = vf_fma(vf_set1(0x1.5bba12p-10f), r, vf_set1(0x1.3cea88p-7f));
    const vf middle = vf_fma(vf_set1(0x1.c6b752p-5f), r, vf_set1(0x1.ebf9bcp-3f));
    const vf low = vf_fma(vf_set1(0x1.62e42ap-1f), r, vf_set1(1.0f));
    const vf p = vf_fma(vf_fma(high, r2, middle), r2, low);
    return vf_ldexp(p, t);
}

HK_INLINE vf vf_silu(vf x) {
    return vf_div(x, vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_zero(), x))));
}

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

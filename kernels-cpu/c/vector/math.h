/* exp and what is made of it, eight lanes at a time. */

/* e^x to about 1 ulp: x = k ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, k into the exponent.
 * Below -87.3 the answer stays near 1e-38, above 88.3 near 2e38: close enough to 0 and infinity for what follows. */
HK_INLINE vf vf_exp(vf x) {
    x = vf_min(vf_max(x, vf_set1(-87.3f)), vf_set1(88.3f));
    const vf k = vf_round(vf_mul(x, vf_set1(0x1.715476p+0f)));
    vf r = vf_fnma(k, vf_set1(0x1.62e4p-1f), x); /* ln 2 in two parts: k times the first is exact */
    r = vf_fnma(k, vf_set1(0x1.7f7d1cp-20f), r);
    vf p = vf_set1(0x1.6c16c2p-10f); /* 1/720 .. 1/2: Taylor, the rest is below 2e-7 of e^r */
    p = vf_fma(p, r, vf_set1(0x1.111112p-7f));
    p = vf_fma(p, r, vf_set1(0x1.555556p-5f));
    p = vf_fma(p, r, vf_set1(0x1.555556p-3f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, vf_mul(r, r), vf_add(r, vf_set1(1.0f)));
    return vf_mul(p, vf_pow2(k));
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
    return vf_fma(p, z, vf_max(x, vf_zero()));
}

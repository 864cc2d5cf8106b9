/* What all products with quantized matrices share: activations as int8 blocks, scales, codes.
 *
 * Requires: simd_neon.h, types.h. */
#ifndef HYMBA_QUANT_ARM_INL_H
#define HYMBA_QUANT_ARM_INL_H

HK_INLINE int16x4_t round_quarter(float32x4_t x, float inverse) {
    return vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(x, inverse))); /* ties to even */
}

HK_INLINE int8x8_t round_eight(vf x, float inverse) {
    return vqmovn_s16(vcombine_s16(round_quarter(x.lo, inverse), round_quarter(x.hi, inverse)));
}

static void quantize(const float *x, size_t n, int8_t *q, float *d, int32_t *offset) {
    for (size_t b = 0; b < n / HK_BLOCK; b++, x += HK_BLOCK, q += HK_BLOCK) {
        const vf v[4] = {vf_load(x), vf_load(x + 8), vf_load(x + 16), vf_load(x + 24)};
        const float max = vf_reduce_max(vf_max(vf_max(vf_abs(v[0]), vf_abs(v[1])), vf_max(vf_abs(v[2]), vf_abs(v[3]))));
        d[b] = max / 127.0f;
        const float inverse = max >= HK_TINY ? 127.0f / max : 0;
        const int8x16_t lo = vcombine_s8(round_eight(v[0], inverse), round_eight(v[1], inverse));
        const int8x16_t hi = vcombine_s8(round_eight(v[2], inverse), round_eight(v[3], inverse));
        vst1q_s8(q, lo);
        vst1q_s8(q + 16, hi);
        offset[b] = -8 * vaddvq_s16(vpadalq_s8(vpaddlq_s8(lo), hi));
    }
}

/* The sums of a block for eight rows and one token. */
typedef struct block_sums {
    int32x4_t lo, hi;
} block_sums;

/* eight consecutive scales */
HK_INLINE vf load_scales(hk_type type, const uint8_t *p) {
    if (scale_bytes(type) == 2) return vf_load_f16(p);
    /* half of 2^(e-127), whose exponent bits are e, except for e = 0: 2^-127 is subnormal */
    const uint16x8_t e = vmovl_u8(vld1_u8(p));
    const uint32x4_t least = vdupq_n_u32(1 << 22);
    const uint32x4_t lo = vmaxq_u32(vshlq_n_u32(vmovl_u16(vget_low_u16(e)), 23), least);
    const uint32x4_t hi = vmaxq_u32(vshlq_n_u32(vmovl_high_u16(e), 23), least);
    return vf_mul(vf_of(vreinterpretq_f32_u32(lo), vreinterpretq_f32_u32(hi)), vf_set1(0.5f));
}

/* sum + whole * scale * d + min * d * (sum of the activations): all tables add blocks in this order */
HK_INLINE vf add_block(hk_type type, vf sum, block_sums whole, vf scale, const uint8_t *mins, float d, int32_t offset) {
    sum = vf_fma(vf_of(vcvtq_f32_s32(whole.lo), vcvtq_f32_s32(whole.hi)), vf_mul(scale, vf_set1(d)), sum);
    return has_min(type) ? vf_fma(vf_load_f16(mins), vf_set1(act_sum(d, offset)), sum) : sum;
}

/* the nibbles with column c of a packed chunk, or with half c / 4 of a row */
HK_INLINE uint8x16_t nibbles(uint8x16_t bytes, size_t c) {
    return c < 4 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4);
}

/* codes of 4 or 5 bits as signed bytes; without a table of levels, the zero point is included */
HK_INLINE int8x16_t code_values(hk_type type, uint8x16_t codes) {
    if (type_levels(type)) return vqtbl1q_s8(vld1q_s8(type_levels(type)), codes);
    return vreinterpretq_s8_u8(codes);
}

/* the zero point that is included */
HK_INLINE int code_zero_point(hk_type type) { return code_bits(type) == 8 || type_levels(type) ? 0 : zero_point(type); }

/* y = or += sum, `lanes` values of it */
HK_INLINE void put_sums(float *y, size_t lanes, vf sum, int accumulate) {
    if (lanes < VF_LANES) {
        if (accumulate) sum = vf_add(vf_load_n(y, lanes), sum);
        vf_store_n(y, lanes, sum);
    } else {
        if (accumulate) sum = vf_add(vf_load(y), sum);
        vf_store(y, sum);
    }
}

#endif

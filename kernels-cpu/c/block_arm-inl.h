/* Products with matrices in ggml's order: eight rows at a time, summed in the order of packed matrices.
 *
 * Requires: quant_arm-inl.h; HK_SDOT if the table has it. */
#ifndef HYMBA_BLOCK_ARM_INL_H
#define HYMBA_BLOCK_ARM_INL_H

#define BLOCK_TOKENS 4 /* of a tile */

/* The 32 weights of a block of one row as signed bytes. */
typedef struct block_weights {
    int8x16_t lo, hi;
} block_weights;

/* 16 in the bytes whose bit of the 16 is set */
HK_INLINE uint8x16_t block_fifth(const uint8_t *bits) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    return vandq_u8(vtstq_u8(vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1])), bit), vdupq_n_u8(16));
}

HK_INLINE block_weights block_values(hk_type type, const uint8_t *block) {
    const uint8_t *head = block + scale_bytes(type) + (has_min(type) ? 2 : 0);
    if (code_bits(type) == 8)
        return (block_weights){vld1q_s8((const int8_t *)head), vld1q_s8((const int8_t *)head + 16)};
    const uint8x16_t both = vld1q_u8(head + (has_fifth(type) ? 4 : 0));
    uint8x16_t lo = nibbles(both, 0), hi = nibbles(both, 4);
    if (has_fifth(type)) lo = vorrq_u8(lo, block_fifth(head)), hi = vorrq_u8(hi, block_fifth(head + 2));
    const int8x16_t bias = vdupq_n_s8((int8_t)code_zero_point(type));
    return (block_weights){vsubq_s8(code_values(type, lo), bias), vsubq_s8(code_values(type, hi), bias)};
}

/* four partial sums of a block's products */
HK_INLINE int32x4_t dot_quads(block_weights w, const int8_t *q) {
    const int8x16_t lo = vld1q_s8(q), hi = vld1q_s8(q + 16);
#ifdef HK_SDOT
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w.lo, lo), w.hi, hi);
#else
    /* a pair of products is at most 2 * 128 * 127 < 2^15 */
    const int16x8_t first = vmlal_high_s8(vmull_s8(vget_low_s8(w.lo), vget_low_s8(lo)), w.lo, lo);
    const int16x8_t second = vmlal_high_s8(vmull_s8(vget_low_s8(w.hi), vget_low_s8(hi)), w.hi, hi);
    return vpadalq_s16(vpaddlq_s16(first), second);
#endif
}

/* up to eight rows, one per lane; unused lanes repeat the last */
HK_INLINE void block_tile(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t t0,
                          size_t tokens, float *y, size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = type_bytes(type);
    vf sum[BLOCK_TOKENS];
    for (size_t t = 0; t < tokens; t++) sum[t] = vf_zero();
    for (size_t b = 0; b < blocks; b++) {
        int32x4_t whole[BLOCK_TOKENS][2];
        uint8_t scales[16], mins[16];
        for (size_t h = 0; h < 2; h++) {
            int32x4_t quads[BLOCK_TOKENS][4];
            for (size_t i = 0; i < 4; i++) {
                const size_t r = 4 * h + i;
                const uint8_t *block = w + ((r < rows ? r : rows - 1) * blocks + b) * size;
                const block_weights values = block_values(type, block);
                memcpy(scales + r * scale_bytes(type), block, scale_bytes(type));
                if (has_min(type)) memcpy(mins + 2 * r, block + 2, 2);
                for (size_t t = 0; t < tokens; t++)
                    quads[t][i] = dot_quads(values, x->q + (t0 + t) * cols + b * HK_BLOCK);
            }
            for (size_t t = 0; t < tokens; t++)
                whole[t][h] = vpaddq_s32(vpaddq_s32(quads[t][0], quads[t][1]), vpaddq_s32(quads[t][2], quads[t][3]));
        }
        const vf scale = load_scales(type, scales);
        for (size_t t = 0; t < tokens; t++) {
            const size_t at = (t0 + t) * blocks + b;
            const block_sums sums = {whole[t][0], whole[t][1]};
            sum[t] = add_block(type, sum[t], sums, scale, mins, x->d[at], x->offset[at]);
        }
    }
    for (size_t t = 0; t < tokens; t++) put_sums(y + (t0 + t) * y_stride, rows, sum[t], accumulate);
}

#endif

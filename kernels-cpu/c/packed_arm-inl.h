/* Blocks of eight interleaved rows: one row per lane, so there are no horizontal sums and one load gets eight scales.
 * Each pair of row and token is summed block by block in the same order, regardless of the tile.
 *
 * Requires: simd_neon.h, types.h, quant_arm-inl.h; HK_SDOT and HK_MMLA if the table has them. */
#ifndef HYMBA_PACKED_ARM_INL_H
#define HYMBA_PACKED_ARM_INL_H

/* per tile: the integer sums of a block and the float sums of all blocks stay in registers */
#ifdef HK_MMLA
#define TILE_TOKENS 6
#else
#define TILE_TOKENS 4
#endif
#define TILE_SUMS 8 /* maximum number of tokens per tile */

/* The activations of a block of 32 columns: columns 4c .. 4c+3 of token t are at q + t * token + c * column, its scale
 * and offset at t * stride. */
typedef struct block_acts {
    const int8_t *q;
    const float *d;
    const int32_t *offset;
    size_t token, column, stride;
} block_acts;

/* The first block of tokens t0 .. of a matrix [tokens, cols]. */
HK_INLINE block_acts acts_by_token(const hk_act *x, size_t cols, size_t t0) {
    const size_t blocks = cols / HK_BLOCK;
    return (block_acts){x->q + t0 * cols, x->d + t0 * blocks, x->offset + t0 * blocks, cols, 4, blocks};
}

/* The first block of `tokens` interleaved tokens. */
HK_INLINE block_acts acts_interleaved(const hk_act *x, size_t tokens) {
    return (block_acts){x->q, x->d, x->offset, 4, 4 * tokens, 1};
}

/* The tokens from t on. */
HK_INLINE block_acts acts_from(block_acts x, size_t t) {
    x.q += t * x.token, x.d += t * x.stride, x.offset += t * x.stride;
    return x;
}

/* The codes of columns 4c .. 4c+3 of the first four rows, or (half 1) of the last four: four bytes per row. */
HK_INLINE uint8x16_t packed_bytes(hk_type type, const uint8_t *block, size_t c, size_t half) {
    const uint8_t *chunks = block + HK_LANES * head_bytes(type) + 16 * half;
    const uint8x16_t bytes = vld1q_u8(chunks + 32 * (code_bits(type) == 8 ? c : c % 4));
    if (!has_fifth(type)) return bytes;
    const uint8x16_t set = vtstq_u8(vld1q_u8(chunks - 4 * HK_LANES), vdupq_n_u8((uint8_t)(1 << c)));
    return vorrq_u8(nibbles(bytes, c), vandq_u8(set, vdupq_n_u8(16)));
}

/* The same weights as signed bytes; too large by code_zero_point. */
HK_INLINE int8x16_t packed_weights(hk_type type, uint8x16_t bytes, size_t c) {
    if (code_bits(type) == 8) return vreinterpretq_s8_u8(bytes);
    return code_values(type, has_fifth(type) ? bytes : nibbles(bytes, c));
}

/* zero-point correction of every row's sum; `offset` is that for a zero point of 8 */
HK_INLINE int32x4_t packed_begin(hk_type type, int32_t offset) {
    return vdupq_n_s32(offset * (code_zero_point(type) / 8));
}

/* the two columns of a byte's nibbles, one after the other */
HK_INLINE size_t packed_column(size_t i) { return i / 2 + i % 2 * 4; }

/* ---- the sums of a block: eight rows, some tokens ---- */

#ifdef HK_SDOT

HK_INLINE int32x4_t dot_lane(int32x4_t sum, int8x16_t w, int8x16_t a, size_t lane) {
    switch (lane) { /* an immediate operand */
    case 0: return vdotq_laneq_s32(sum, w, a, 0);
    case 1: return vdotq_laneq_s32(sum, w, a, 1);
    case 2: return vdotq_laneq_s32(sum, w, a, 2);
    default: return vdotq_laneq_s32(sum, w, a, 3);
    }
}

/* The sums of a block's products with some tokens, a constant number. */
HK_INLINE void block_dot(hk_type type, const uint8_t *block, block_acts x, size_t tokens, block_sums *dot) {
    const int interleaved =
        x.token == 4; /* a register then holds four columns of four tokens, else 16 columns of one */
    int8x16_t a[TILE_SUMS][2];
    for (size_t t = 0; t < tokens; t++) {
        dot[t].lo = dot[t].hi = packed_begin(type, x.offset[t * x.stride]);
        for (size_t i = 0; i < 2 && !interleaved; i++) a[t][i] = vld1q_s8(x.q + t * x.token + 16 * i);
    }
    UNROLL
    for (size_t i = 0; i < 8; i++) {
        const size_t c = packed_column(i);
        const int8x16_t lo = packed_weights(type, packed_bytes(type, block, c, 0), c);
        const int8x16_t hi = packed_weights(type, packed_bytes(type, block, c, 1), c);
        UNROLL
        for (size_t t = 0; t < tokens; t++) {
            if (interleaved && t % 4 == 0) a[t / 4][0] = vld1q_s8(x.q + c * x.column + 4 * t);
            const int8x16_t four = interleaved ? a[t / 4][0] : a[t][c / 4];
            dot[t].lo = dot_lane(dot[t].lo, lo, four, interleaved ? t % 4 : c % 4);
            dot[t].hi = dot_lane(dot[t].hi, hi, four, interleaved ? t % 4 : c % 4);
        }
    }
}

#else

/* Four pairs of rows: a row is four lanes of 16 bits, or two of 32. */
typedef struct packed_sums {
    int16x8_t narrow[4];
    int32x4_t wide[4];
} packed_sums;

/* Whether sums of eight products with activations fit 16 bits. */
HK_INLINE int packed_narrow(hk_type type) { return zero_point(type) != 128; /* 5-bit codes: 8 * 31 * 127 < 2^15 */ }

/* The sums of a block's products with some tokens, a constant number. */
HK_INLINE void block_dot(hk_type type, const uint8_t *block, block_acts x, size_t tokens, block_sums *dot) {
    packed_sums s[TILE_SUMS];
    for (size_t t = 0; t < tokens; t++)
        for (size_t p = 0; p < 4; p++) {
            s[t].narrow[p] = vdupq_n_s16(0);
            s[t].wide[p] = vdupq_n_s32(0);
        }
    UNROLL
    for (size_t i = 0; i < 8; i++) {
        const size_t c = packed_column(i);
        int8x16_t w[2];
        for (size_t half = 0; half < 2; half++) w[half] = packed_weights(type, packed_bytes(type, block, c, half), c);
        UNROLL
        for (size_t t = 0; t < tokens; t++) {
            int32_t four;
            memcpy(&four, x.q + t * x.token + c * x.column, sizeof four);
            const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(four));
            int16x8_t *sum = s[t].narrow;
            for (size_t half = 0; half < 2; half++, sum += 2) {
                sum[0] = vmlal_s8(sum[0], vget_low_s8(w[half]), vget_low_s8(a));
                sum[1] = vmlal_high_s8(sum[1], w[half], a);
            }
            if (packed_narrow(type) || i % 2 == 0) continue;
            for (size_t p = 0; p < 4; p++) { /* two products are at most 2 * 128 * 127 < 2^15 */
                s[t].wide[p] = vpadalq_s16(s[t].wide[p], s[t].narrow[p]);
                s[t].narrow[p] = vdupq_n_s16(0);
            }
        }
    }
    for (size_t t = 0; t < tokens; t++) {
        if (packed_narrow(type))
            for (size_t p = 0; p < 4; p++) s[t].wide[p] = vpaddlq_s16(s[t].narrow[p]);
        const int32x4_t begin = packed_begin(type, x.offset[t * x.stride]);
        dot[t].lo = vaddq_s32(begin, vpaddq_s32(s[t].wide[0], s[t].wide[1]));
        dot[t].hi = vaddq_s32(begin, vpaddq_s32(s[t].wide[2], s[t].wide[3]));
    }
}

#endif

#ifdef HK_MMLA

/* two rows of a group, eight columns each from 8k on */
HK_INLINE int8x16_t two_rows(hk_type type, const uint8_t *block, size_t k, size_t pair) {
    const uint32x4_t a = vreinterpretq_u32_u8(packed_bytes(type, block, 2 * k, pair / 2));
    const uint32x4_t b = vreinterpretq_u32_u8(packed_bytes(type, block, 2 * k + 1, pair / 2));
    return packed_weights(type, vreinterpretq_u8_u32(pair % 2 == 0 ? vzip1q_u32(a, b) : vzip2q_u32(a, b)), 2 * k);
}

/* Eight columns each of tokens t and t + 1, from 8k on. */
HK_INLINE int8x16_t two_tokens(block_acts x, size_t t, size_t k) {
    const int8_t *q = x.q + t * x.token + 2 * k * x.column;
    if (x.token != 4) return vcombine_s8(vld1_s8(q), vld1_s8(q + x.token));
    const int32x2_t a = vreinterpret_s32_s8(vld1_s8(q)), b = vreinterpret_s32_s8(vld1_s8(q + x.column));
    return vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(a, b), vzip2_s32(a, b)));
}

/* block_dot for pairs of tokens: two tokens and two rows give four sums at once. An odd last token, which is possible
 * when interleaved, is paired with the slack after it. */
HK_INLINE void block_dot_pairs(hk_type type, const uint8_t *block, block_acts x, size_t tokens, block_sums *dot) {
    int32x4_t sum[(TILE_SUMS + 1) / 2][4];
    for (size_t t = 0; t < tokens; t += 2) {
        const int32x4_t one = packed_begin(type, x.offset[t * x.stride]);
        const int32x4_t two = t + 1 < tokens ? packed_begin(type, x.offset[(t + 1) * x.stride]) : one;
        for (size_t pair = 0; pair < 4; pair++) sum[t / 2][pair] = vcombine_s32(vget_low_s32(one), vget_low_s32(two));
    }
    UNROLL
    for (size_t i = 0; i < 4; i++) {
        const size_t k = i / 2 + i % 2 * 2; /* both columns of a byte's nibbles, one after the other */
        int8x16_t w[4];
        for (size_t pair = 0; pair < 4; pair++) w[pair] = two_rows(type, block, k, pair);
        for (size_t t = 0; t < tokens; t += 2) {
            const int8x16_t a = two_tokens(x, t, k);
            for (size_t pair = 0; pair < 4; pair++) sum[t / 2][pair] = vmmlaq_s32(sum[t / 2][pair], a, w[pair]);
        }
    }
    for (size_t t = 0; t < tokens; t += 2) {
        int64x2_t s[4];
        for (size_t pair = 0; pair < 4; pair++) s[pair] = vreinterpretq_s64_s32(sum[t / 2][pair]);
        dot[t].lo = vreinterpretq_s32_s64(vzip1q_s64(s[0], s[1]));
        dot[t].hi = vreinterpretq_s32_s64(vzip1q_s64(s[2], s[3]));
        if (t + 1 == tokens) break;
        dot[t + 1].lo = vreinterpretq_s32_s64(vzip2q_s64(s[0], s[1]));
        dot[t + 1].hi = vreinterpretq_s32_s64(vzip2q_s64(s[2], s[3]));
    }
}

#endif

/* Adds a block's products with some tokens. */
HK_INLINE void block_add(hk_type type, const uint8_t *block, block_acts x, size_t tokens, vf sum[TILE_SUMS]) {
    block_sums dot[TILE_SUMS];
#ifdef HK_MMLA
    if (tokens % 2 == 0 || (tokens > 1 && x.token == 4))
        block_dot_pairs(type, block, x, tokens, dot);
    else
#endif
        block_dot(type, block, x, tokens, dot);
    const vf scale = load_scales(type, block);
    const uint8_t *mins = block + HK_LANES * scale_bytes(type);
    for (size_t t = 0; t < tokens; t++)
        sum[t] = add_block(type, sum[t], dot[t], scale, mins, x.d[t * x.stride], x.offset[t * x.stride]);
}

#endif

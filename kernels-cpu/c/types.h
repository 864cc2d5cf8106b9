/* The table of quantized types as functions, which are constants for a constant type. */
#ifndef HYMBA_TYPES_H
#define HYMBA_TYPES_H

#include "hymba_kernels.h"

#define HK_LANES 8 /* interleaved rows in packed matrices */

static inline int is_packed(hk_type type) { return (type & HK_X8) != 0; }

static inline hk_type plain_type(hk_type type) { return (hk_type)(type & ~HK_X8); }

#define TYPE_FACT(result, fact, value)        \
    static inline result fact(hk_type type) { \
        switch (plain_type(type)) {           \
            HK_QUANTIZED_TYPES(value, _)      \
        default: return 0;                    \
        }                                     \
    }
#define SCALE_BYTES(_, name, id, scale, min, fifth, bits, zero, levels) \
    case HK_##name: return scale;
#define HAS_MIN(_, name, id, scale, min, fifth, bits, zero, levels) \
    case HK_##name: return min;
#define HAS_FIFTH(_, name, id, scale, min, fifth, bits, zero, levels) \
    case HK_##name: return fifth;
#define CODE_BITS(_, name, id, scale, min, fifth, bits, zero, levels) \
    case HK_##name: return bits;
#define ZERO_POINT(_, name, id, scale, min, fifth, bits, zero, levels) \
    case HK_##name: return zero;

/* size of a block's scale in bytes: a half float, or only the exponent */
TYPE_FACT(size_t, scale_bytes, SCALE_BYTES)
/* whether a value is d * level + m, m a half float */
TYPE_FACT(int, has_min, HAS_MIN)
TYPE_FACT(int, has_fifth, HAS_FIFTH)
TYPE_FACT(size_t, code_bits, CODE_BITS)
/* makes every level unsigned when added */
TYPE_FACT(int, zero_point, ZERO_POINT)

#define LEVELS(_, name, id, scale, min, fifth, bits, zero, levels) \
    case HK_##name: return levels;

/* the levels of 4-bit codes, or NULL */
static const int8_t IQ4_NL_LEVELS[16] = HK_IQ4_NL_LEVELS;
static const int8_t MXFP4_LEVELS[16] = HK_MXFP4_LEVELS;
TYPE_FACT(const int8_t *, type_levels, LEVELS)

/* size of everything before the codes, for one row */
static inline size_t head_bytes(hk_type type) {
    return scale_bytes(type) + (has_min(type) ? 2 : 0) + (has_fifth(type) ? 4 : 0);
}

/* size of a block in bytes; in packed matrices of all eight rows */
static inline size_t type_bytes(hk_type type) {
    const size_t one = head_bytes(type) + HK_BLOCK * code_bits(type) / 8;
    return is_packed(type) ? HK_LANES * one : one;
}

/* the sum of a block's activations, by which the minimum of its weights is multiplied */
static inline float act_sum(float d, int32_t offset) { return (float)offset * -0.125f * d; }

#endif

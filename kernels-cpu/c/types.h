/* What a block of each quantized type is made of, in this order: a scale, a minimum, the fifth bits of 5-bit codes, and
 * codes of 4 or 8 bits. */
#ifndef HYMBA_TYPES_H
#define HYMBA_TYPES_H

#include "hymba_kernels.h"

#define HK_LANES 8 /* rows that are interleaved in packed matrices */

/* AS(product, type) for every type of packed matrix */
#define EACH_PACKED(AS, product) \
    AS(product, HK_Q8_0X8)       \
    AS(product, HK_Q4_0X8)       \
    AS(product, HK_Q4_1X8)       \
    AS(product, HK_Q5_0X8)       \
    AS(product, HK_Q5_1X8)       \
    AS(product, HK_IQ4_NLX8)     \
    AS(product, HK_MXFP4X8)

static inline int is_packed(hk_type type) {
    return (type & HK_X8) != 0;
}

static inline hk_type plain_type(hk_type type) {
    return (hk_type)(type & ~HK_X8);
}

/* bytes of a block's scale: a half float, or the exponent alone */
static inline size_t scale_bytes(hk_type type) {
    return plain_type(type) == HK_MXFP4 ? 1 : 2;
}

/* is a value d*q + m, m a half float? */
static inline int has_min(hk_type type) {
    return plain_type(type) == HK_Q4_1 || plain_type(type) == HK_Q5_1;
}

static inline int has_fifth(hk_type type) {
    return plain_type(type) == HK_Q5_0 || plain_type(type) == HK_Q5_1;
}

/* what is before the codes of 4 or 8 bits: of one row */
static inline size_t head_bytes(hk_type type) {
    return scale_bytes(type) + (has_min(type) ? 2 : 0) + (has_fifth(type) ? 4 : 0);
}

/* bytes of a block, in packed matrices of all eight rows' */
static inline size_t type_bytes(hk_type type) {
    const size_t one = head_bytes(type) + (plain_type(type) == HK_Q8_0 ? HK_BLOCK : HK_BLOCK / 2);
    return is_packed(type) ? HK_LANES * one : one;
}

/* what the minimum of a block's weights is multiplied with: the sum of its activations */
static inline float act_sum(float d, int32_t offset) {
    return (float)offset * -0.125f * d;
}

/* the tables of IQ4_NL and, doubled, of the 4-bit floats of MXFP4 */
static const int8_t IQ4_NL_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t MXFP4_LEVELS[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#endif

/* Half floats and bfloat16 in plain C, for CPUs without instructions for them. */
#ifndef HYMBA_HALF_H
#define HYMBA_HALF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t load_u16(const void *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline float bits_to_f32(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static inline float bf16_to_f32(uint16_t h) { return bits_to_f32((uint32_t)h << 16); }

static inline float f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t exponent = (h >> 10) & 31, fraction = h & 0x3ff;
    if (exponent == 31) return bits_to_f32(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) { /* zero and subnormals: fraction * 2^-24, exact in F32 */
        const float v = (float)fraction * 0x1p-24f;
        return sign ? -v : v;
    }
    return bits_to_f32(sign | (exponent + 112) << 23 | fraction << 13);
}

/* Value i of blocks of 32 that are a half-float scale and 32 signed bytes each. */
static inline size_t q8_offset(size_t i) { return i / 32 * 34; }

static inline float q8_value(const void *blocks, size_t i) {
    const char *block = (const char *)blocks + q8_offset(i);
    return f16_to_f32(load_u16(block)) * (float)((const int8_t *)block)[2 + i % 32];
}

static inline uint16_t f32_to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7e00 | (uint16_t)(bits >> 13 & 0x3ff); /* NaN */
    if (bits >= 0x477ff000u) return sign | 0x7c00;                                 /* rounds to infinity */
    if (bits < 0x38800000u) { /* subnormal: adding 0.5 leaves the value in units of 2^-24, rounded by the FPU */
        const float v = bits_to_f32(bits) + 0.5f;
        memcpy(&bits, &v, sizeof bits);
        return sign | (uint16_t)(bits - 0x3f000000u);
    }
    bits += 0xfffu + (bits >> 13 & 1); /* ties to even */
    return sign | (uint16_t)((bits - 0x38000000u) >> 13);
}

#endif

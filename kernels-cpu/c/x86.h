/* The kernels of every x86 table: the bodies in vector/ on eight lanes, and products with quantized matrices. The file
 * that includes this may define
 *   HK_DPBUSD(sum, u, s)  adds to each 32-bit lane its four products of unsigned and signed bytes: the same integers
 *                         as without, and hence the same results bit for bit
 *   HK_DPBUSD_WIDE        the same on 512 bits
 *   HK_LOOKUP32(i, t)     looks up the low five bits of each byte of i in the 32 bytes of t
 *   HK_LOOKUP64(i, t)     the low six, in 64 bytes
 *   TILE_TOKENS           tokens of a tile of packed matrices on 256 bits */
#include <math.h>

#ifndef TILE_TOKENS
#define TILE_TOKENS 5
#endif

#include "half.h"
#include "simd_avx2.h"
#include "tiles.h"
#include "types.h"

#include "vector/wide.h"

#include "vector/math.h"

#include "vector/attention.h"
#include "vector/attention_token.h"
#include "vector/elementwise.h"
#include "vector/float_matmul.h"
#include "vector/ssm.h"

/* ---- int8 activations ---- */

/* The bits of magnitudes are in the order of these, and those of NaN come last: it is not lost, as it is in vf_max. */
HK_INLINE __m256i greater_bits(vf a, vf b) {
    return _mm256_max_epi32(_mm256_castps_si256(vf_abs(a)), _mm256_castps_si256(vf_abs(b)));
}
HK_INLINE float top_magnitude(const vf v[4]) {
    const __m256i all = _mm256_max_epi32(greater_bits(v[0], v[1]), greater_bits(v[2], v[3]));
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    s = _mm_max_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(s, _mm_shuffle_epi32(s, 1))));
}

static void quantize(const float *x, size_t n, int8_t *q, float *d, int32_t *offset) {
    for (size_t b = 0; b < n / HK_BLOCK; b++, x += HK_BLOCK, q += HK_BLOCK) {
        const vf v[4] = {vf_load(x), vf_load(x + 8), vf_load(x + 16), vf_load(x + 24)};
        const float max = top_magnitude(v);
        d[b] = max / 127.0f;
        const vf inverse = vf_set1(max >= HK_TINY ? 127.0f / max : 0);
        __m256i i[4];
        for (int j = 0; j < 4; j++) i[j] = _mm256_cvtps_epi32(vf_mul(v[j], inverse));
        /* the packs work within 128-bit halves: put the quarters back in order */
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(bytes, order));
        /* biased to unsigned for the one instruction that adds bytes */
        const __m256i sums = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
        const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        offset[b] = -8 * (_mm_cvtsi128_si32(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half))) - 128 * HK_BLOCK);
    }
}

/* ---- products with quantized matrices in ggml's order: eight rows at a time, with the sums of packed ones ---- */

#define BLOCK_TOKENS 4 /* of a tile */

/* a table of 16 bytes in both halves, for the instruction that looks up */
HK_INLINE __m256i table16(const int8_t *levels) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)levels));
}

/* 16 in the bytes whose bit of the 32 is set */
HK_INLINE __m256i block_fifth(const uint8_t *bits) {
    int32_t word;
    memcpy(&word, bits, sizeof word);
    const __m256i order = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i set = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), order), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(set, bit), _mm256_set1_epi8(16));
}

/* the 32 weights of a block as signed bytes, before scale and minimum */
HK_INLINE __m256i block_values(hk_type type, const uint8_t *block) {
    const uint8_t *head = block + scale_bytes(type) + (has_min(type) ? 2 : 0);
    if (code_bits(type) == 8) return _mm256_loadu_si256((const __m256i *)head);
    const __m128i nibbles = _mm_loadu_si128((const __m128i *)(head + (has_fifth(type) ? 4 : 0)));
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(nibbles, 4), nibbles);
    __m256i codes = _mm256_and_si256(both, _mm256_set1_epi8(15));
    if (type_levels(type)) return _mm256_shuffle_epi8(table16(type_levels(type)), codes);
    if (has_fifth(type)) codes = _mm256_or_si256(codes, block_fifth(head));
    return zero_point(type) ? _mm256_sub_epi8(codes, _mm256_set1_epi8((char)zero_point(type))) : codes;
}

/* eight scales, one behind the other */
HK_INLINE vf load_scales(hk_type type, const void *p) {
    if (scale_bytes(type) == 2) return vf_load_f16(p);
    /* half of 2^(e-127), whose bits are those of e but for e = 0: 2^-127 is a fraction without exponent */
    const __m256i e = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p)), 23);
    return vf_mul(_mm256_castsi256_ps(_mm256_max_epi32(e, _mm256_set1_epi32(1 << 22))), vf_set1(0.5f));
}

/* Sums of four neighbouring products. maddubs wants one side unsigned: |w| and the activation with w's sign.
 * |w| is at most 128 and |a| at most 127, so that a pair (2 * 128 * 127) fits 16 bits. */
HK_INLINE __m256i dot_quads(__m256i w, __m256i w_abs, const int8_t *q) {
    const __m256i a = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)q), w);
#ifdef HK_DPBUSD
    return HK_DPBUSD(_mm256_setzero_si256(), w_abs, a);
#else
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w_abs, a), _mm256_set1_epi16(1));
#endif
}

/* the sum of the lanes of each of eight */
HK_INLINE __m256i whole_sums(const __m256i x[8]) {
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* up to eight rows, a row a lane; lanes without one repeat the last */
HK_INLINE void block_tile(hk_type type, const uint8_t *w, size_t rows, size_t cols, const hk_act *x, size_t t0,
                          size_t tokens, float *y, size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK, size = type_bytes(type);
    vf sum[BLOCK_TOKENS];
    for (size_t t = 0; t < tokens; t++) sum[t] = vf_zero();
    for (size_t b = 0; b < blocks; b++) {
        __m256i quads[BLOCK_TOKENS][8];
        uint8_t scales[16];
        uint16_t mins[8];
        for (size_t r = 0; r < 8; r++) {
            const uint8_t *block = w + ((r < rows ? r : rows - 1) * blocks + b) * size;
            const __m256i values = block_values(type, block), values_abs = _mm256_abs_epi8(values);
            memcpy(scales + r * scale_bytes(type), block, scale_bytes(type));
            if (has_min(type)) mins[r] = load_u16(block + 2);
            for (size_t t = 0; t < tokens; t++)
                quads[t][r] = dot_quads(values, values_abs, x->q + (t0 + t) * cols + b * HK_BLOCK);
        }
        const vf scale = load_scales(type, scales);
        for (size_t t = 0; t < tokens; t++) {
            const size_t at = (t0 + t) * blocks + b;
            sum[t] = vf_fma(_mm256_cvtepi32_ps(whole_sums(quads[t])), vf_mul(scale, vf_set1(x->d[at])), sum[t]);
            if (has_min(type)) sum[t] = vf_fma(vf_load_f16(mins), vf_set1(act_sum(x->d[at], x->offset[at])), sum[t]);
        }
    }
    for (size_t t = 0; t < tokens; t++) {
        float *out = y + (t0 + t) * y_stride;
        if (accumulate) sum[t] = vf_add(vf_load_n(out, rows), sum[t]);
        vf_store_n(out, rows, sum[t]);
    }
}

#include "packed_x86-inl.h"
#ifdef HK_DPBUSD_WIDE
#include "packed_x86_512-inl.h"
#endif
#include "gemm_x86-inl.h"
#include "gemv_x86-inl.h"

#include "vector/table.h"

/* ---- read bandwidth ---- */

HK_INLINE uint64_t read_runs(const uint8_t *p, size_t n, size_t runs, size_t apart) {
    __m256i s[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t i = 0; i < n; i += 128)
        for (size_t r = 0; r < runs; r++)
            for (int j = 0; j < 4; j++)
                s[j] = _mm256_add_epi64(s[j], _mm256_loadu_si256((const __m256i *)(p + r * apart + i + 32 * j)));
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)lanes, _mm256_add_epi64(_mm256_add_epi64(s[0], s[1]), _mm256_add_epi64(s[2], s[3])));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

static uint64_t read_all(const void *p, size_t n, size_t apart) {
    return apart > 0 ? read_runs(p, n, HK_STREAMS, apart) : read_runs(p, n, 1, 0);
}

/* ---- arithmetic from registers ---- */

/* RATE_CHAINS: enough to hide how long a step takes */
#ifdef HK_DPBUSD_WIDE
#define RATE_BYTES 64
#define RATE_CHAINS 12
#define RATE_STEP(sum, w, a) HK_DPBUSD_WIDE(sum, w, a)
typedef __m512i rate_sum;
#else
#define RATE_BYTES 32
typedef __m256i rate_sum;
#ifdef HK_DPBUSD
#define RATE_CHAINS 12
#define RATE_STEP(sum, w, a) HK_DPBUSD(sum, w, a)
#else
#define RATE_CHAINS 8
#define RATE_STEP(sum, w, a) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)))
#endif
#endif

static uint32_t int8_rate(size_t rounds) {
    rate_sum sum[RATE_CHAINS], a, w;
    memset(&a, 3, sizeof a), memset(&w, 5, sizeof w);
#pragma GCC unroll 12
    for (int i = 0; i < RATE_CHAINS; i++) sum[i] = a;
    for (size_t n = rounds * (HK_ROUND / RATE_BYTES / RATE_CHAINS); n > 0; n--)
#pragma GCC unroll 12
        for (int i = 0; i < RATE_CHAINS; i++) {
            OPT_BARRIER(a); /* each chain multiplies anew */
            sum[i] = RATE_STEP(sum[i], w, a);
        }
    uint32_t all = 0;
#pragma GCC unroll 12
    for (int i = 0; i < RATE_CHAINS; i++) {
        uint32_t lanes[RATE_BYTES / 4];
        memcpy(lanes, &sum[i], sizeof lanes);
        all += lanes[0];
    }
    return all;
}

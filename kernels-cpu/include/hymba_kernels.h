/* The one C interface of Hymba's CPU kernels.
 *
 * There is a table of functions per instruction set: `hk_scalar` is the reference and runs anywhere; the others are
 * NULL if they are not part of the build. The caller checks the CPU's features before it uses a table.
 *
 * Shapes are [slowest, ..., fastest]. Strides are in elements. Pointers need the alignment of their type, `void`
 * pointers none. Outputs never overlap inputs unless a comment says so. No kernel allocates. Results do not depend
 * on how the caller splits rows, tokens, channels or heads: every output value is computed in the same order,
 * regardless of threads or chunks.
 */
#ifndef HYMBA_KERNELS_H
#define HYMBA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "hk_types.h"

/* Values in a block of a quantized type, and of quantized activations. */
#define HK_BLOCK 32

/* Attention: rows of K and V in a tile. Scratch for transposed keys holds HK_KEYS_STRIDE floats for each value of a
 * key, scratch for scores HK_SCORES_STRIDE for each query: more than a strip or a tile, since whole vectors are
 * written.
 */
#define HK_TILE_ROWS 128
#define HK_KEYS_STRIDE 24
#define HK_SCORES_STRIDE (HK_TILE_ROWS + 8)

/* Maximum number of convolution taps, except in the scalar table. */
#define HK_CONV_TAPS 8

/* Number of concurrent row ranges in `gemv`, and its maximum number of tokens. */
#define HK_STREAMS 4
#define HK_FEW_TOKENS 8

/* Multiply-adds per iteration of the loops that measure a core. */
#define HK_ROUND 4608

/* Added to a plain type's number for the type with rows interleaved by eight. */
#define HK_X8 16

/* A block whose largest magnitude is below this is treated as zeros: 127 / max must be finite. */
#define HK_TINY 1e-30f

/* How a weight matrix or a KV row is stored: floats, or ggml's blocks, see hk_types.h. Nibbles: byte j holds the code
 * of column j low, that of column j+16 high. Fifth bits: bit i of 32 is that of column i.
 *
 * X8: the same blocks of eight rows interleaved, so that a row is a lane; rows are padded to a multiple of 8. First
 * come the eight scales, then the eight minima, then 32 bytes of fifth bits: bit c of byte 4r+j is that of column 4c+j
 * of row r. Then chunks of 32 bytes: byte 4r+j of chunk c is column 4c+j of row r, or its nibbles columns 4c+j (low)
 * and 16+4c+j. */
typedef enum hk_type {
    HK_F32 = 0,
    HK_F16 = 1,
    HK_BF16 = 2,
#define HK_TYPE(_, name, id, ...) HK_##name = id, HK_##name##X8 = HK_X8 + id,
    HK_QUANTIZED_TYPES(HK_TYPE, _)
#undef HK_TYPE
} hk_type;

/* An entry of the table of quantized types. */
typedef struct hk_type_facts {
    hk_type plain, packed;
    size_t scale_bytes, code_bits;
    int has_min, has_fifth, zero_point;
    const int8_t *levels; /* of 4-bit codes, or NULL */
} hk_type_facts;

/* Activations [tokens, cols]. Products with F32, F16 and BF16 matrices read `x`; those with quantized ones read `q`,
 * `d` and `offset`, row-major or interleaved: the tokens of a block of columns one after the other, for q in pieces of
 * four columns. */
typedef struct hk_act {
    const float *x; /* [tokens, cols], rows `stride` apart */
    size_t stride;
    const int8_t *q;       /* [tokens, cols], or [cols / 32, 8, tokens, 4] and 12 more readable bytes */
    const float *d;        /* [tokens, cols / 32], or [cols / 32, tokens]: value = d * q */
    const int32_t *offset; /* like d: -8 * (sum of the block's q), the correction for zero point 8 */
} hk_act;

/* A span of KV rows, in order of position. */
typedef struct hk_kv_span {
    const void *k; /* [kv_heads, rows, key_dim], heads `k_head_stride` values apart */
    const void *v; /* [kv_heads, rows, value_dim], heads `v_head_stride` values apart */
    size_t rows, k_head_stride, v_head_stride;
} hk_kv_span;

/* The keys and values that attention reads: the concatenated spans are one sequence of rows.
 *
 * The sequence is split into tiles of HK_TILE_ROWS rows: the prefix from its first row; the rest wherever
 * `tile_offset` plus the number of rows after the prefix is a multiple of HK_TILE_ROWS. A tile's partial result does
 * not depend on what else a call reads, so tiles of the same rows have the same bits. */
typedef struct hk_kv_sequence {
    hk_type type; /* of K and V: HK_F32, HK_F16, or HK_Q8_0 where every head has whole blocks */
    size_t kv_heads, key_dim, value_dim;
    const hk_kv_span *spans;
    size_t n_spans, rows; /* rows: of all spans */
    size_t prefix;        /* the first rows, the same for every token */
    size_t tile_offset;   /* the lane of the first row after the prefix */
} hk_kv_sequence;

/* Prefill: attention of several tokens. `group` query heads share a KV head (GQA):
 *   out = softmax(scale * q.K) V  over the prefix and the rows first[t] .. end[t] of the sequence. */
typedef struct hk_attend_prefill {
    hk_kv_sequence kv;
    size_t tokens, group;
    const float *q; /* [tokens, kv_heads * group, key_dim], tokens `q_stride` values apart */
    size_t q_stride;
    const size_t *first, *end; /* [tokens], rows of the sequence, after the prefix */
    float scale;
    float *scratch; /* [key_dim, HK_KEYS_STRIDE]: transposed keys */
    float *out;     /* [tokens, kv_heads * group, value_dim], tokens `out_stride` values apart */
    size_t out_stride;
} hk_attend_prefill;

/* Decode: attention of one token, which sees all rows, split over calls (split-KV): each processes some tiles, and
 * stores partial results for `combine_partials`. */
typedef struct hk_attend_decode {
    hk_kv_sequence kv;
    size_t group;
    const float *q;  /* [kv_heads * group, key_dim] */
    size_t from, to; /* rows of the sequence that this call reads: whole tiles */
    /* Software prefetch runs ahead of the rows in use, up to row `prefetch_end` of the sequence; the next call starts
     * at `to`. prefetched: the previous call has prefetched the first rows of this one. */
    size_t prefetch_end;
    int prefetched;
    float scale;
    float *scratch; /* [kv_heads * group, HK_SCORES_STRIDE], or [key_dim, HK_KEYS_STRIDE] if larger */
    /* For each tile, `tile_stride` values apart: the maximum score and the sum of w = exp(score - max) [kv_heads *
     * group], and the sum of w * V [kv_heads * group, value_dim]. */
    float *max, *sum, *out;
    size_t tile_stride;
} hk_attend_decode;

/* Depthwise causal convolution and SiLU over a range of channels. */
typedef struct hk_conv {
    const float *u;                          /* [tokens, channels], rows `u_stride` apart */
    size_t u_stride, tokens, channels, taps; /* taps: at most HK_CONV_TAPS, except in the scalar table */
    const float *weight;                     /* [channels, taps], the last tap for the current token */
    const float *bias;                       /* [channels] or NULL */
    /* The last taps-1 inputs before the first token and after the last [taps-1, channels], rows `state_stride` apart.
     * `next` may be `state`. */
    const float *state;
    float *next;
    size_t state_stride;
    float *out; /* [tokens, channels], rows `out_stride` apart */
    size_t out_stride;
} hk_conv;

/* Selective scan over a range of channels:
 *   delta = softplus(dt + dt_bias);  h = exp(delta*A)*h + delta*u*B;  y = (h.C + D*u) * silu(gate) */
typedef struct hk_scan {
    const float *dt, *u, *gate; /* [tokens, channels], rows `*_stride` apart */
    size_t dt_stride, u_stride, gate_stride;
    const float *b, *c; /* [tokens, states], rows `bc_stride` apart */
    size_t bc_stride;
    const float *dt_bias, *d; /* [channels] */
    const float *a;           /* [channels, states] */
    const float *h;           /* before the first token [channels, states] */
    float *next;              /* after the last; may be h */
    size_t tokens, channels, states;
    float *y; /* [tokens, channels], rows `y_stride` apart */
    size_t y_stride;
} hk_scan;

typedef struct hk_kernels {
    const char *name;
    /* y[t*y_stride + r] = or += W[r] . x[t].  W is [rows, cols] of `type` with packed rows. For interleaved types, W
     * is any range of whole groups of 8 rows, and the last group may be incomplete. */
    void (*matmul)(hk_type type, const void *w, size_t rows, size_t cols, const hk_act *x, size_t tokens, float *y,
                   size_t y_stride, int accumulate);
    /* The same for interleaved or float matrices and few tokens, 1 to HK_FEW_TOKENS: y[i][t*y_stride + r] = or +=
     * W[i][r] . x[t], each W[i] a range of `rows` rows, in whole groups of 8. The ranges are read concurrently, with
     * software prefetch `prefetch_distance` bytes ahead. The quantized values of x are interleaved. NULL if the table
     * has no such kernel. */
    void (*gemv)(hk_type type, const void *const w[HK_STREAMS], size_t rows, size_t cols, size_t prefetch_distance,
                 const hk_act *x, size_t tokens, float *const y[HK_STREAMS], size_t y_stride, int accumulate);
    /* x [n] to int8 blocks: d = max|x| / 127, q = x / d rounded to the nearest (ties to even), offset as in
     * hk_act.  n % 32 == 0 */
    void (*quantize)(const float *x, size_t n, int8_t *q, float *d, int32_t *offset);
    /* y = x / sqrt(mean(x^2) + eps) * gain.  y may be x. */
    void (*rms_norm)(const float *x, const float *gain, float eps, size_t n, float *y);
    /* y = (rms_norm(a, gain_a) + rms_norm(b, gain_b)) / 2 */
    void (*fuse)(const float *a, const float *gain_a, const float *b, const float *gain_b, float eps, size_t n,
                 float *y);
    /* Rotates the pairs (j, j + dim/2) of each head of x [heads, dim], in place. cos, sin: [dim/2] */
    void (*rope)(float *x, size_t heads, size_t dim, const float *cos, const float *sin);
    /* x [n] to IEEE half, ties to even. */
    void (*to_f16)(const float *x, size_t n, uint16_t *y);
    void (*attend_prefill)(const hk_attend_prefill *a);
    void (*attend_decode)(const hk_attend_decode *a);
    /* Combines the partial results of `attend_decode` for `n` tiles and adjacent heads: max, sum [n, heads], tiles
     * `stride` apart; values [n, heads, value_dim], tiles `values_stride` apart; y [heads, value_dim]. Tiles are added
     * in the same order as in `attend_prefill`. */
    void (*combine_partials)(const float *max, const float *sum, size_t stride, const float *values,
                             size_t values_stride, size_t n, size_t heads, size_t value_dim, float *y);
    void (*conv_silu)(const hk_conv *a);
    void (*scan)(const hk_scan *a);
    /* y = silu(gate) * up.  y may be up. */
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *y);
    /* x = max(x, 0)^2, in place */
    void (*relu2)(float *x, size_t n);
    /* For measuring the read bandwidth: reads n bytes or, if `apart` is not 0, HK_STREAMS ranges of n bytes at once
     * that start `apart` bytes apart, and returns a value that depends on all of them.  n % 128 == 0 */
    uint64_t (*read)(const void *p, size_t n, size_t apart);
    /* For measuring the compute limit of a core: run a loop of `rounds` iterations on registers and return a value that
     * depends on it. An iteration is HK_ROUND 8-bit multiply-adds as in `matmul`, or HK_ROUND f32 ones. */
    uint32_t (*int8_rate)(size_t rounds);
    float (*float_rate)(size_t rounds);
} hk_kernels;

/* Returns the properties of a quantized type, plain or packed; NULL for other types. */
const hk_type_facts *hk_facts(hk_type type);

/* Copies `blocks` blocks of one of `tokens` tokens to their place among them, as hk_act says: from `to_q` and so on,
 * the token's first. */
void hk_interleave(const int8_t *q, const float *d, const int32_t *offset, size_t blocks, size_t tokens, int8_t *to_q,
                   float *to_d, int32_t *to_offset);

const hk_kernels *hk_scalar(void);
/* Needs AVX2, FMA and F16C. */
const hk_kernels *hk_avx2(void);
/* Bit-identical results with VNNI's dot products. AVX-VNNI also needs AVX2, FMA and F16C; AVX-512 VNNI also needs
 * these and AVX-512 F, BW and VL; the last table also needs AVX-512 VBMI. */
const hk_kernels *hk_avxvnni(void);
const hk_kernels *hk_avx512vnni(void);
const hk_kernels *hk_avx512vbmi(void);
/* Needs Advanced SIMD, which every 64-bit Arm CPU has. */
const hk_kernels *hk_neon(void);
/* Bit-identical results with the dot products of FEAT_DotProd, and with those and the matrix instructions of
 * FEAT_I8MM. */
const hk_kernels *hk_neon_dotprod(void);
const hk_kernels *hk_neon_i8mm(void);

#endif

/* The one C interface of Hymba's CPU kernels.
 *
 * A table of functions per instruction set: `hk_scalar` is the plain reference and runs anywhere; the others are
 * NULL where the build has no such code. The caller checks what the CPU can do before it takes a table.
 *
 * Shapes are [slowest, ..., fastest]. Strides are in elements. Pointers need no alignment beyond their type's, and
 * need not even that where they are `void`. Outputs never overlap inputs unless a comment says so. No kernel
 * allocates, and none depends on how the caller splits rows, tokens, channels or heads: every output value is
 * computed in the same order whatever the split, so that results do not change with threads or chunks.
 */
#ifndef HYMBA_KERNELS_H
#define HYMBA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "hk_types.h"

/* Values in a block of a quantized type, and of quantized activations. */
#define HK_BLOCK 32

/* Rows of K and V that attention takes at once, the floats of scratch that it needs for each value of a key, and those
 * for each query of a single token: some more than rows may be written. */
#define HK_ATTEND_ROWS 128
#define HK_ATTEND_SCRATCH 24
#define HK_ATTEND_SCORES (HK_ATTEND_ROWS + 8)

/* Runs of rows that `gemv` reads at once, and tokens that it takes at most. */
#define HK_STREAMS 4
#define HK_FEW_TOKENS 8

/* Multiply-adds in a round of the loops that measure a core. */
#define HK_ROUND 4608

/* What a plain type's number becomes larger by where rows are interleaved by eight. */
#define HK_X8 16

/* A block whose greatest magnitude is below this is taken as zeros: 127 / max must stay finite. */
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

/* A row of the table of quantized types. */
typedef struct hk_type_facts {
    hk_type plain, packed;
    size_t scale_bytes, code_bits;
    int has_min, has_fifth, zero_point;
    const int8_t *levels; /* of 4-bit codes, or NULL */
} hk_type_facts;

/* Activations [tokens, cols]. Matrices of F32, F16 and BF16 read `x`; quantized ones read `q`, `d` and `offset`, which
 * lie token by token, or interleaved: the tokens of a block of columns one after the other, of q in pieces of four
 * columns. */
typedef struct hk_act {
    const float *x; /* [tokens, cols], rows `stride` apart */
    size_t stride;
    const int8_t *q;       /* [tokens, cols], or [cols / 32, 8, tokens, 4] and 12 bytes more that may be read */
    const float *d;        /* [tokens, cols / 32], or [cols / 32, tokens]: value = d * q */
    const int32_t *offset; /* as d: -8 times the sum of the block's q: what -8 in every weight adds */
} hk_act;

/* A run of KV cache rows that a query may see, in order of position. K and V are of one type. */
typedef struct hk_rows {
    const void *k; /* [kv_heads, rows, key_dim], heads `k_head_stride` values apart */
    const void *v; /* [kv_heads, rows, value_dim], heads `v_head_stride` values apart */
    size_t rows, k_head_stride, v_head_stride;
} hk_rows;

/* Attention of some tokens, for kv heads that lie side by side and the query heads that share them. The runs are one
 * sequence of rows. Every token sees the first `prefix` rows; of the others, token t sees first[t] .. end[t].
 *
 * The rows are taken tile by tile: the prefix from its first row on, what follows from wherever `tile_offset` plus the
 * number of the row behind the prefix is a multiple of HK_ATTEND_ROWS. A tile's part of the answer does not depend on
 * what else a call looks at, so that tiles with the same rows give the same bits. */
typedef struct hk_attend {
    const float *q; /* [tokens, kv_heads * group, key_dim], tokens `q_stride` apart */
    size_t q_stride, tokens, kv_heads, group, key_dim, value_dim;
    hk_type type; /* of K and V: HK_F32, HK_F16, or HK_Q8_0 where every head has whole blocks */
    const hk_rows *runs;
    size_t n_runs;
    size_t from, to; /* the rows of the sequence that this call looks at */
    /* A single token prefetches rows some time before it uses them, up to row `prefetch_end` of the sequence: the next
     * call takes those behind `to`. `prefetched`: the call before has prefetched the first rows of this one. */
    size_t prefetch_end;
    int prefetched;
    size_t prefix, tile_offset;
    const size_t *first, *end; /* [tokens] */
    float scale;
    float *scratch; /* [key_dim, HK_ATTEND_SCRATCH]; with a tile_stride [kv_heads * group, HK_ATTEND_SCORES], if that is
                       more */
    /* Parts of the answer: the scores' maximum and the sum of w = exp(score - max) [tokens, kv_heads * group]; of a
     * token that sees none of the rows, -infinity and 0. out: the sum of w * V [tokens, kv_heads * group, value_dim],
     * tokens `out_stride` apart. Those of each tile are `tile_stride` values behind those of the tile before; or, where
     * that is 0, added to them. */
    float *max, *sum, *out;
    size_t out_stride, tile_stride;
} hk_attend;

/* Depthwise causal convolution and SiLU over a range of channels. */
typedef struct hk_conv {
    const float *u; /* [tokens, channels], rows `u_stride` apart */
    size_t u_stride, tokens, channels, taps;
    const float *weight; /* [channels, taps], the last tap meets the present */
    const float *bias;   /* [channels] or NULL */
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
    /* y[t*y_stride + r] = or += W[r] . x[t].  W is [rows, cols] of `type`, rows without gaps. Of a packed matrix, any
     * run of whole groups of 8 rows, and the last group may lack rows. */
    void (*matmul)(hk_type type, const void *w, size_t rows, size_t cols, const hk_act *x, size_t tokens, float *y,
                   size_t y_stride, int accumulate);
    /* The same products of packed or float matrices and few tokens, 1 to HK_FEW_TOKENS: y[i][t*y_stride + r] = or +=
     * W[i][r] . x[t], each W[i] a run of `rows` rows, whole groups of 8. Memory is read at as many places at once, and
     * prefetched `prefetch_distance` bytes farther in each. The quantized values of x are interleaved. NULL where the
     * table has no such code. */
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
    void (*attend)(const hk_attend *a);
    /* Softmax attention of heads that lie side by side from what `attend` made of `n` tiles, added in the order in
     * which it adds them itself: max, sum [n, heads], tiles `stride` apart; values [n, heads, value_dim], tiles
     * `values_stride` apart. y [heads, value_dim] may be values. */
    void (*combine_partials)(const float *max, const float *sum, size_t stride, const float *values,
                             size_t values_stride, size_t n, size_t heads, size_t value_dim, float *y);
    void (*conv_silu)(const hk_conv *a);
    void (*scan)(const hk_scan *a);
    /* y = silu(gate) * up.  y may be up. */
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *y);
    /* x = max(x, 0)^2, in place */
    void (*relu2)(float *x, size_t n);
    /* Reads n bytes, or HK_STREAMS runs of n bytes at once, each `apart` bytes behind the one before unless that is 0,
     * and returns something that depends on all of them: measures read bandwidth.  n % 128 == 0 */
    uint64_t (*read)(const void *p, size_t n, size_t apart);
    /* What a core can do at most, from registers: run a loop of `rounds` rounds and return something that depends on
     * it. A round is HK_ROUND 8-bit multiply-adds the way `matmul` does them, or HK_ROUND f32 ones. */
    uint32_t (*int8_rate)(size_t rounds);
    float (*float_rate)(size_t rounds);
} hk_kernels;

/* The facts of a quantized type, plain or packed; NULL of the others. */
const hk_type_facts *hk_facts(hk_type type);

/* Copies `blocks` blocks of one of `tokens` tokens to their place among them, as hk_act says: from `to_q` and so on,
 * the token's first. */
void hk_interleave(const int8_t *q, const float *d, const int32_t *offset, size_t blocks, size_t tokens, int8_t *to_q,
                   float *to_d, int32_t *to_offset);

const hk_kernels *hk_scalar(void);
/* Needs AVX2, FMA and F16C. */
const hk_kernels *hk_avx2(void);
/* The same results bit for bit, with the instruction that multiplies and adds bytes. AVX-VNNI needs AVX2, FMA and F16C
 * too; AVX-512 VNNI those, and AVX-512 F, BW and VL; the last AVX-512 VBMI besides. */
const hk_kernels *hk_avxvnni(void);
const hk_kernels *hk_avx512vnni(void);
const hk_kernels *hk_avx512vbmi(void);
/* Needs Advanced SIMD, which every 64-bit Arm CPU has. */
const hk_kernels *hk_neon(void);
/* The same results bit for bit, with the instructions that multiply and add bytes: those of FEAT_DotProd; those and
 * FEAT_I8MM's. */
const hk_kernels *hk_neon_dotprod(void);
const hk_kernels *hk_neon_i8mm(void);

#endif

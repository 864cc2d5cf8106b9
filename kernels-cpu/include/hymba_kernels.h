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

/* Attention: rows of K and V in a tile. Scratch for transposed keys holds HK_KEYS_STRIDE floats for each value of a
 * key, scratch for scores HK_SCORES_STRIDE for each query: some more than a strip or a tile, since whole vectors are
 * written.
 */
#define HK_TILE_ROWS 128
#define HK_KEYS_STRIDE 24
#define HK_SCORES_STRIDE (HK_TILE_ROWS + 8)

/* Taps of a convolution at most, in every table but the scalar one. */
#define HK_CONV_TAPS 8

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

/* A span of KV rows, in order of position. */
typedef struct hk_kv_span {
    const void *k; /* [kv_heads, rows, key_dim], heads `k_head_stride` values apart */
    const void *v; /* [kv_heads, rows, value_dim], heads `v_head_stride` values apart */
    size_t rows, k_head_stride, v_head_stride;
} hk_kv_span;

/* The keys and values that attention reads: spans that, one behind the other, are one sequence of rows.
 *
 * The sequence is cut into tiles of HK_TILE_ROWS rows: the prefix from its first row on; what follows it wherever
 * `tile_offset` plus the number of rows behind the prefix is a multiple of HK_TILE_ROWS. A tile's partial result does
 * not depend on what else a call reads, so that tiles of the same rows give the same bits. */
typedef struct hk_kv_sequence {
    hk_type type; /* of K and V: HK_F32, HK_F16, or HK_Q8_0 where every head has whole blocks */
    size_t kv_heads, key_dim, value_dim;
    const hk_kv_span *spans;
    size_t n_spans, rows; /* rows: of all spans */
    size_t prefix;        /* the first rows, the same for every token */
    size_t tile_offset;   /* the lane of its tile in which the first row behind the prefix lies */
} hk_kv_sequence;

/* Prefill: attention of several tokens. `group` query heads share a KV head (GQA):
 *   out = softmax(scale * q.K) V  over the prefix and the rows first[t] .. end[t] of the sequence. */
typedef struct hk_attend_prefill {
    hk_kv_sequence kv;
    size_t tokens, group;
    const float *q; /* [tokens, kv_heads * group, key_dim], tokens `q_stride` values apart */
    size_t q_stride;
    const size_t *first, *end; /* [tokens], rows of the sequence, at or behind the prefix */
    float scale;
    float *scratch; /* [key_dim, HK_KEYS_STRIDE]: transposed keys */
    float *out;     /* [tokens, kv_heads * group, value_dim], tokens `out_stride` values apart */
    size_t out_stride;
} hk_attend_prefill;

/* Decode: attention of one token, which sees all rows, split over calls (split-KV): each takes some tiles, and leaves
 * the partial results that `combine_partials` combines. */
typedef struct hk_attend_decode {
    hk_kv_sequence kv;
    size_t group;
    const float *q;  /* [kv_heads * group, key_dim] */
    size_t from, to; /* rows of the sequence that this call reads: whole tiles */
    /* Software prefetch runs ahead of the rows in use, up to row `prefetch_end` of the sequence: the next call goes on
     * at `to`. prefetched: the call before has prefetched the first rows of this one. */
    size_t prefetch_end;
    int prefetched;
    float scale;
    float *scratch; /* [kv_heads * group, HK_SCORES_STRIDE], or [key_dim, HK_KEYS_STRIDE] if that is more */
    /* Of each tile, `tile_stride` values behind those of the tile before: the scores' maximum and the sum of w =
     * exp(score - max) [kv_heads * group], and the sum of w * V [kv_heads * group, value_dim]. */
    float *max, *sum, *out;
    size_t tile_stride;
} hk_attend_decode;

/* Depthwise causal convolution and SiLU over a range of channels. */
typedef struct hk_conv {
    const float *u;                          /* [tokens, channels], rows `u_stride` apart */
    size_t u_stride, tokens, channels, taps; /* taps: at most HK_CONV_TAPS, but in the scalar table */
    const float *weight;                     /* [channels, taps], the last tap meets the present */
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
    void (*attend_prefill)(const hk_attend_prefill *a);
    void (*attend_decode)(const hk_attend_decode *a);
    /* Combines the partial results that `attend_decode` left of `n` tiles, for heads that lie side by side: max, sum
     * [n, heads], tiles `stride` apart; values [n, heads, value_dim], tiles `values_stride` apart; y [heads,
     * value_dim]. Tiles are added in the order in which `attend_prefill` adds them. */
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

/* Prefill attention: many queries share a KV head. Rows are processed tile by tile, so that only the scores of one tile
 * are stored. Keys are transposed (one row per lane) and values converted to floats, one strip at a time for all
 * queries; a strip stays in L1. Single tokens use attention_decode-inl.h.
 *
 * Requires: attention-inl.h. */
#ifndef HYMBA_ATTENTION_PREFILL_INL_H
#define HYMBA_ATTENTION_PREFILL_INL_H

#define STRIP VW_LANES     /* lanes whose keys are transposed, or columns whose values are converted, at once */
#define PREFILL_QUERIES 40 /* queries per tile of scores */
#define QUERY_BLOCK (VW_WHOLE ? 10 : 6) /* queries whose sums stay in registers */

/* Queries of one KV head and their accumulated outputs: the sum of exp(score - max) * V, to be divided by `sum`. */
typedef struct query_set {
    size_t n;
    int fresh;                        /* whether no tile has been added */
    const float *q[PREFILL_QUERIES];  /* [key_dim] */
    float *out[PREFILL_QUERIES];      /* [value_dim] */
    lane_range seen[PREFILL_QUERIES]; /* in the current tile */
    float max[PREFILL_QUERIES], sum[PREFILL_QUERIES];
    float old_scale[PREFILL_QUERIES], new_scale[PREFILL_QUERIES]; /* of the output so far, and of the tile */
    float scores[PREFILL_QUERIES][HK_SCORES_STRIDE];
} query_set;

/* Transposes the keys of the strip of lanes that starts at `from`: [key_dim, HK_KEYS_STRIDE]. */
HK_INLINE void transpose_keys(hk_type type, const tile_piece *pieces, size_t n_pieces, size_t key_dim, size_t from,
                              float *keys_t) {
    for (const tile_piece *piece = pieces; piece < pieces + n_pieces; piece++) {
        const size_t begin = piece->lane > from ? piece->lane : from;
        const size_t end = piece->lane + piece->rows < from + STRIP ? piece->lane + piece->rows : from + STRIP;
        for (size_t lane = begin; lane < end;
             lane += VF_LANES) { /* may write more lanes, which the next pieces overwrite */
            const size_t n = end - lane < VF_LANES ? end - lane : VF_LANES;
            const void *k = kv_at(type, piece->k, (lane - piece->lane) * key_dim);
            float *out = keys_t + lane - from;
            size_t j = 0;
            for (; j + VF_LANES <= key_dim; j += VF_LANES, out += VF_LANES * HK_KEYS_STRIDE) {
                vf square[VF_LANES];
                for (size_t i = 0; i < VF_LANES; i++) square[i] = i < n ? kv_load(type, k, i * key_dim + j) : vf_zero();
                vf_transpose(square);
                for (size_t i = 0; i < VF_LANES; i++) vf_store(out + i * HK_KEYS_STRIDE, square[i]);
            }
            for (; j < key_dim; j++, out += HK_KEYS_STRIDE)
                for (size_t i = 0; i < n; i++) out[i] = kv_value(type, k, i * key_dim + j);
        }
    }
}

/* Products of n queries with the transposed keys of a strip. */
HK_INLINE void score_strip(query_set *s, size_t q0, size_t n, const float *keys_t, size_t from, size_t key_dim) {
    vw sums[VF_LANES][QUERY_BLOCK];
#pragma GCC unroll 1
    for (size_t lane = 0; lane < VF_LANES; lane++) {
        vw sum[QUERY_BLOCK];
        for (size_t q = 0; q < n; q++) sum[q] = vw_zero();
        for (size_t j = lane; j < key_dim; j += VF_LANES) {
            const vw keys = vw_load(keys_t + j * HK_KEYS_STRIDE);
            for (size_t q = 0; q < n; q++) sum[q] = vw_fma(vw_set1(s->q[q0 + q][j]), keys, sum[q]);
        }
        for (size_t q = 0; q < n; q++) sums[lane][q] = sum[q];
    }
#pragma GCC unroll 1
    for (size_t q = 0; q < n; q++) { /* in the order of `vf_sums` */
        const vw even = vw_add(vw_add(sums[0][q], sums[2][q]), vw_add(sums[1][q], sums[3][q]));
        const vw odd = vw_add(vw_add(sums[4][q], sums[6][q]), vw_add(sums[5][q], sums[7][q]));
        vw_store(s->scores[q0 + q] + from, vw_add(even, odd));
    }
}

/* Columns j .. j + STRIP of V: a row of `strip` for each lane. */
HK_INLINE void convert_values(hk_type type, const tile_piece *pieces, size_t n_pieces, size_t value_dim, size_t j,
                              float strip[HK_TILE_ROWS][STRIP]) {
    for (size_t i = 0; i < n_pieces; i++)
        for (size_t r = 0; r < pieces[i].rows; r++)
            vw_store(strip[pieces[i].lane + r], kv_load_wide(type, pieces[i].v, r * value_dim + j));
}

/* The columns of `strip`, from j on, of out = out * old_scale + (scores . V) * new_scale, or of scores . V; a tile's
 * pieces lie in lanes begin .. end without gaps. */
HK_INLINE void value_strip(query_set *s, size_t q0, size_t n, size_t begin, size_t end, size_t j,
                           float strip[HK_TILE_ROWS][STRIP]) {
    vw sum[QUERY_BLOCK];
    for (size_t q = 0; q < n; q++) sum[q] = vw_zero();
    const float *scores = s->scores[q0];
#pragma GCC unroll 2
    for (size_t r = begin; r < end; r++) {
        const vw values = vw_load(strip[r]);
        for (size_t q = 0; q < n; q++) sum[q] = vw_fma(vw_set1(scores[q * HK_SCORES_STRIDE + r]), values, sum[q]);
    }
    for (size_t q = 0; q < n; q++) {
        float *out = s->out[q0 + q] + j;
        vw_store(out,
                 s->fresh ? sum[q] : rescaled_sum(vw_load(out), s->old_scale[q0 + q], sum[q], s->new_scale[q0 + q]));
    }
}

/* The same for column j of all queries. */
HK_INLINE void value_column(query_set *s, hk_type type, const tile_piece *pieces, size_t n_pieces, size_t value_dim,
                            size_t j) {
    for (size_t q = 0; q < s->n; q++) {
        float sum = 0;
        for (const tile_piece *piece = pieces; piece < pieces + n_pieces; piece++)
            for (size_t r = 0; r < piece->rows; r++)
                sum = fmaf(s->scores[q][piece->lane + r], kv_value(type, piece->v, r * value_dim + j), sum);
        s->out[q][j] = s->fresh ? sum : fmaf(sum, s->new_scale[q], s->out[q][j] * s->old_scale[q]);
    }
}

/* Runs STEP(n) for queries q .. q + n, block by block: n is a constant in each, so that the sums of a block stay in
 * registers. */
#define EACH_BLOCK(STEP)                   \
    for (size_t q = 0; q < s->n;) {        \
        switch (s->n - q) {                \
            QUERIES(STEP, 1)               \
            QUERIES(STEP, 2)               \
            QUERIES(STEP, 3)               \
            QUERIES(STEP, 4)               \
            QUERIES(STEP, 5)               \
        default:                           \
            if (s->n - q >= QUERY_BLOCK) { \
                STEP(QUERY_BLOCK);         \
                q += QUERY_BLOCK;          \
            } else {                       \
                STEP(6);                   \
                q += 6;                    \
            }                              \
        }                                  \
    }
#define QUERIES(STEP, n) \
    case n:              \
        STEP(n);         \
        q += n;          \
        break;

/* Adds a tile to the outputs. keys_t: scratch memory for transposed keys. */
HK_INLINE void attend_tile_type(const hk_kv_sequence *kv, hk_type type, size_t head, kv_tile tile, float scale,
                                float *keys_t, query_set *s) {
    tile_piece pieces[TILE_PIECES];
    const size_t n_pieces = tile_pieces(kv, type, tile, head, pieces);
    const size_t begin = tile.lane, end = tile.lane + tile.rows;
#define SCORES(n) score_strip(s, q, n, keys_t, r, kv->key_dim)
#define VALUES(n) value_strip(s, q, n, begin, end, j, strip)
    for (size_t r = begin / VF_LANES * VF_LANES; r < end; r += STRIP) {
        transpose_keys(type, pieces, n_pieces, kv->key_dim, r, keys_t);
        EACH_BLOCK(SCORES)
    }
    for (size_t q = 0; q < s->n; q++)
        softmax_tile(scale, tile, s->seen[q], s->scores[q], &s->max[q], &s->sum[q], &s->old_scale[q], &s->new_scale[q]);
    float strip[HK_TILE_ROWS][STRIP];
    size_t j = 0;
    for (; j + STRIP <= kv->value_dim; j += STRIP) {
        convert_values(type, pieces, n_pieces, kv->value_dim, j, strip);
        EACH_BLOCK(VALUES)
    }
    for (; j < kv->value_dim; j++) value_column(s, type, pieces, n_pieces, kv->value_dim, j);
#undef SCORES
#undef VALUES
}

#undef QUERIES
#undef EACH_BLOCK

/* noinline keeps each type's register allocation separate. */
#define ATTEND_TILE(name, type)                                                                                  \
    static __attribute__((noinline)) void name(const hk_kv_sequence *kv, size_t head, kv_tile tile, float scale, \
                                               float *keys_t, query_set *s) {                                    \
        attend_tile_type(kv, type, head, tile, scale, keys_t, s);                                                \
    }
ATTEND_TILE(attend_tile_f32, HK_F32)
ATTEND_TILE(attend_tile_f16, HK_F16)
ATTEND_TILE(attend_tile_q8, HK_Q8_0)
#undef ATTEND_TILE

static void attend_tile(const hk_kv_sequence *kv, size_t head, kv_tile tile, float scale, float *keys_t, query_set *s) {
    switch (kv->type) {
    case HK_F16: attend_tile_f16(kv, head, tile, scale, keys_t, s); break;
    case HK_Q8_0: attend_tile_q8(kv, head, tile, scale, keys_t, s); break;
    default: attend_tile_f32(kv, head, tile, scale, keys_t, s);
    }
}

/* Sets the inputs and outputs of queries q0 .. q0 + s->n of a KV head, token by token. */
static void prefill_queries(const hk_attend_prefill *a, size_t head, size_t q0, query_set *s) {
    for (size_t q = 0; q < s->n; q++) {
        const size_t t = (q0 + q) / a->group, h = head * a->group + (q0 + q) % a->group;
        s->q[q] = a->q + t * a->q_stride + h * a->kv.key_dim;
        s->out[q] = a->out + t * a->out_stride + h * a->kv.value_dim;
        s->max[q] = -INFINITY, s->sum[q] = 0;
    }
}

static void attend_prefill(const hk_attend_prefill *a) {
    const hk_kv_sequence *kv = &a->kv;
    const size_t all = a->tokens * a->group;
    query_set s;
    for (size_t head = 0; head < kv->kv_heads; head++)
        for (size_t q0 = 0; q0 < all; q0 += s.n) {
            s.n = all - q0 < PREFILL_QUERIES ? all - q0 : PREFILL_QUERIES;
            prefill_queries(a, head, q0, &s);
            kv_tile tile;
            for (size_t at = 0; at < kv->rows; at += tile.rows) {
                tile = tile_at(kv, at, kv->rows);
                for (size_t q = 0; q < s.n; q++) {
                    const size_t t = (q0 + q) / a->group;
                    s.seen[q] = tile_seen(kv, tile, a->first[t], a->end[t]);
                }
                s.fresh = at == 0;
                attend_tile(kv, head, tile, a->scale, a->scratch, &s);
            }
            for (size_t q = 0; q < s.n; q++)
                for (size_t j = 0; j < kv->value_dim; j++) s.out[q][j] /= s.sum[q];
        }
}

#endif

/* Decode attention: one token. With few query heads per KV head, transposing K does not pay off. KV heads are
 * interleaved and each is software-prefetched PREFETCH_ROWS rows ahead, one cache line at a time: that keeps one DRAM
 * stream per head busy, which is faster than a single one, and the prefetched lines stay within L1 and L2.
 *
 * Requires: attention-inl.h; attention_prefill-inl.h for more queries than DECODE_QUERIES. */
#ifndef HYMBA_ATTENTION_DECODE_INL_H
#define HYMBA_ATTENTION_DECODE_INL_H

#define DECODE_QUERIES 5 /* maximum query heads per KV head in published models: their sums stay in registers */
#define UNROLL_STEPS 4   /* steps of an unrolled loop, to amortize its prefetches */
#define QUERY_SUMS (VW_WHOLE ? 2 : 1) /* wide vectors of sums for each query */
#define VALUE_ROWS 16                 /* rows processed for one head before the next */
#define PREFETCH_ROWS 32              /* the prefetch distance */

/* The position of software prefetch: keys or values of all heads. */
typedef struct kv_prefetch {
    const char *at;           /* the next line */
    const char *wrap;         /* the end of the last head's line */
    const char *stop;         /* the end of the span in the first head */
    size_t head_stride, span; /* distance between heads, 0 when done; size of all heads; in bytes */
    size_t row, end;          /* rows of the sequence to prefetch after `stop` */
} kv_prefetch;

/* Continues with the next span. */
static __attribute__((noinline)) void prefetch_next_span(kv_prefetch *s, const hk_attend_decode *a, int values) {
    const hk_kv_span *span = a->kv.spans;
    for (size_t begin = 0; s->row < s->end; begin += span++->rows) {
        if (s->row >= begin + span->rows) continue;
        const size_t end = begin + span->rows < s->end ? begin + span->rows : s->end,
                     dim = values ? a->kv.value_dim : a->kv.key_dim;
        s->at = kv_at(a->kv.type, values ? span->v : span->k, (s->row - begin) * dim);
        s->stop = s->at + kv_bytes(a->kv.type, (end - s->row) * dim);
        s->head_stride = kv_bytes(a->kv.type, values ? span->v_head_stride : span->k_head_stride);
        s->span = a->kv.kv_heads * s->head_stride;
        s->wrap = s->at + s->span;
        s->row = end;
        return;
    }
    s->at = (const char *)a->scratch; /* which is in L1 */
    s->wrap = NULL;
    s->head_stride = 0;
}

/* Rows from .. end. */
HK_INLINE kv_prefetch prefetch_from(const hk_attend_decode *a, int values, size_t from, size_t end) {
    kv_prefetch s = {.row = from, .end = end};
    prefetch_next_span(&s, a, values);
    return s;
}

HK_INLINE void prefetch_step(kv_prefetch *s, const hk_attend_decode *a, int values, size_t bytes) {
    s->at += s->head_stride;
    if (s->at != s->wrap) return;
    s->at = s->at - s->span + bytes;
    s->wrap += bytes;
    if (s->at >= s->stop) prefetch_next_span(s, a, values);
}

/* Prefetches as much as is consumed, a line or two at a time: AMD CPUs drop prefetches that are issued faster than
 * memory responds. */
HK_INLINE void prefetch_next(kv_prefetch *s, const hk_attend_decode *a, int values, size_t bytes) {
    prefetch_l2(s->at, bytes);
    prefetch_step(s, a, values, bytes);
}

/* Prefetches the first rows, which are needed immediately. */
HK_INLINE void prefetch_drain(kv_prefetch *s, const hk_attend_decode *a, int values) {
    for (; s->head_stride > 0; prefetch_step(s, a, values, 64)) (void)*(const volatile char *)s->at;
}

/* n < VF_LANES values, and zeros */
HK_INLINE vf kv_tail(hk_type type, const void *p, size_t i, size_t n) {
    float values[VF_LANES] = {0};
    for (size_t j = 0; j < n; j++) values[j] = kv_value(type, p, i + j);
    return vf_load(values);
}

/* Multiplies columns j .. j + VF_LANES of some rows of keys by n queries. */
HK_INLINE void score_step(const float *q, size_t n, hk_type type, const void *const row[2 * QUERY_SUMS], size_t key_dim,
                          size_t j, vw sum[DECODE_QUERIES][QUERY_SUMS]) {
    vw keys[QUERY_SUMS];
    for (size_t i = 0; i < QUERY_SUMS; i++)
        keys[i] = vw_pair(kv_load(type, row[2 * i], j), kv_load(type, row[2 * i + 1], j));
    for (size_t k = 0; k < n; k++) {
        vf v = vf_load(q + k * key_dim + j);
        OPT_BARRIER(v); /* loaded once */
        for (size_t i = 0; i < QUERY_SUMS; i++) sum[k][i] = vw_fma(vw_twice(v), keys[i], sum[k][i]);
    }
}

/* Products of a head's n queries with the keys of VF_LANES rows; if there are fewer, the last one is repeated. */
HK_INLINE void score_rows(const hk_attend_decode *a, hk_type type, size_t n, size_t head, const char *k, size_t rows,
                          kv_prefetch *ahead, float *scores) {
    const float *q = a->q + head * n * a->kv.key_dim;
    const size_t key_dim = a->kv.key_dim, rest = key_dim % VF_LANES, whole = key_dim - rest, last = rows - 1,
                 step = 2 * QUERY_SUMS;
    vf pair[DECODE_QUERIES][VF_LANES / 2];
    for (size_t at = 0; at < VF_LANES / 2; at += QUERY_SUMS) {
        const void *row[2 * QUERY_SUMS];
        for (size_t i = 0; i < step; i++) row[i] = kv_at(type, k, (2 * at + i < last ? 2 * at + i : last) * key_dim);
        vw sum[DECODE_QUERIES][QUERY_SUMS];
        for (size_t h = 0; h < n; h++)
            for (size_t i = 0; i < QUERY_SUMS; i++) sum[h][i] = vw_zero();
        size_t j = 0;
        for (; j + UNROLL_STEPS * VF_LANES <= whole; j += UNROLL_STEPS * VF_LANES)
#pragma GCC unroll 4
            for (size_t i = 0; i < UNROLL_STEPS; i++) {
                if (i % 2 == 0) prefetch_next(ahead, a, 0, kv_bytes(type, 2 * step * VF_LANES));
                score_step(q, n, type, row, key_dim, j + i * VF_LANES, sum);
            }
        for (; j < whole; j += VF_LANES) {
            prefetch_next(ahead, a, 0, kv_bytes(type, step * VF_LANES));
            score_step(q, n, type, row, key_dim, j, sum);
        }
        if (rest > 0)
            for (size_t i = 0; i < QUERY_SUMS; i++) {
                const vw keys =
                    vw_pair(kv_tail(type, row[2 * i], whole, rest), kv_tail(type, row[2 * i + 1], whole, rest));
#pragma GCC unroll 5
                for (size_t h = 0; h < n; h++)
                    sum[h][i] = vw_fma(vw_twice(kv_tail(HK_F32, q + h * key_dim, whole, rest)), keys, sum[h][i]);
            }
        for (size_t h = 0; h < n; h++)
            for (size_t i = 0; i < QUERY_SUMS; i++) pair[h][at + i] = vf_pair(vw_low(sum[h][i]), vw_high(sum[h][i]));
    }
    for (size_t h = 0; h < n; h++) vf_store(scores + h * HK_SCORES_STRIDE, vf_sums_of_pairs(pair[h]));
}

/* `width` wide vectors of columns, starting at j, of weights . V for n queries, optionally added to out. */
HK_INLINE void value_columns(const hk_attend_decode *a, hk_type type, size_t n, size_t width, const float *weights,
                             const char *v, size_t rows, size_t j, int fresh, kv_prefetch *ahead, float *out) {
    const size_t value_dim = a->kv.value_dim;
    vw sum[DECODE_QUERIES][QUERY_SUMS];
    for (size_t h = 0; h < n; h++)
        for (size_t i = 0; i < width; i++)
            sum[h][i] = fresh ? vw_zero() : vw_load(out + h * value_dim + j + i * VW_LANES);
#define VALUE_ROW(r)                                                                                              \
    {                                                                                                             \
        vw values[QUERY_SUMS];                                                                                    \
        for (size_t i = 0; i < width; i++) values[i] = kv_load_wide(type, v, (r) * value_dim + j + i * VW_LANES); \
        for (size_t h = 0; h < n; h++) {                                                                          \
            const vw p = vw_set1(weights[h * HK_SCORES_STRIDE + (r)]);                                            \
            for (size_t i = 0; i < width; i++) sum[h][i] = vw_fma(p, values[i], sum[h][i]);                       \
        }                                                                                                         \
    }
    size_t r = 0;
    for (; r + UNROLL_STEPS <= rows; r += UNROLL_STEPS)
#pragma GCC unroll 4
        for (size_t k = 0; k < UNROLL_STEPS; k++) {
            if (k % 2 == 0) prefetch_next(ahead, a, 1, kv_bytes(type, 2 * width * VW_LANES));
            VALUE_ROW(r + k)
        }
    for (; r < rows; r++) VALUE_ROW(r)
#undef VALUE_ROW
    for (size_t h = 0; h < n; h++)
        for (size_t i = 0; i < width; i++) vw_store(out + h * value_dim + j + i * VW_LANES, sum[h][i]);
}

/* All columns. */
HK_INLINE void value_rows(const hk_attend_decode *a, hk_type type, size_t n, const float *weights, const char *v,
                          size_t rows, int fresh, kv_prefetch *ahead, float *out) {
    const size_t value_dim = a->kv.value_dim;
    size_t j = 0;
    for (; j + QUERY_SUMS * VW_LANES <= value_dim; j += QUERY_SUMS * VW_LANES)
        value_columns(a, type, n, QUERY_SUMS, weights, v, rows, j, fresh, ahead, out);
    for (; QUERY_SUMS > 1 && j + VW_LANES <= value_dim; j += VW_LANES)
        value_columns(a, type, n, 1, weights, v, rows, j, fresh, ahead, out);
    for (; j < value_dim; j++)
        for (size_t h = 0; h < n; h++) {
            float *y = out + h * value_dim + j, sum = fresh ? 0 : *y;
            for (size_t r = 0; r < rows; r++)
                sum = fmaf(weights[h * HK_SCORES_STRIDE + r], kv_value(type, v, r * value_dim + j), sum);
            *y = sum;
        }
}

/* Products of all queries with the keys of a tile. */
HK_INLINE void decode_scores(const hk_attend_decode *a, hk_type type, size_t n, const tile_piece *pieces,
                             size_t n_pieces, kv_prefetch *keys, kv_prefetch *first_values) {
    for (const tile_piece *piece = pieces; piece < pieces + n_pieces; piece++)
        for (size_t r = 0; r < piece->rows; r += VF_LANES)
            for (size_t head = 0; head < a->kv.kv_heads; head++) {
                score_rows(a, type, n, head, kv_at(type, piece->k, head * piece->k_head_stride + r * a->kv.key_dim),
                           piece->rows - r, keys, a->scratch + head * n * HK_SCORES_STRIDE + piece->lane + r);
                for (size_t i = 0; first_values->head_stride > 0 && i < VF_LANES; i++)
                    prefetch_next(first_values, a, 1, 64);
            }
}

/* Weights of all queries times the values of a tile. */
HK_INLINE void decode_values(const hk_attend_decode *a, hk_type type, size_t n, const tile_piece *pieces,
                             size_t n_pieces, kv_prefetch *values, float *out) {
    for (const tile_piece *piece = pieces; piece < pieces + n_pieces; piece++)
        for (size_t r = 0, some; r < piece->rows; r += some) {
            some = piece->rows - r < VALUE_ROWS ? piece->rows - r : VALUE_ROWS;
            for (size_t head = 0; head < a->kv.kv_heads; head++)
                value_rows(a, type, n, a->scratch + head * n * HK_SCORES_STRIDE + piece->lane + r,
                           kv_at(type, piece->v, head * piece->v_head_stride + r * a->kv.value_dim), some,
                           piece == pieces && r == 0, values, out + head * n * a->kv.value_dim);
        }
}

/* `n` query heads per KV head, a constant. */
HK_INLINE void decode_type(const hk_attend_decode *a, hk_type type, size_t n) {
    const size_t ahead = a->from + PREFETCH_ROWS < a->prefetch_end ? a->from + PREFETCH_ROWS : a->prefetch_end,
                 first = a->prefetched ? ahead : a->from;
    kv_prefetch keys = prefetch_from(a, 0, ahead, a->prefetch_end),
                values = prefetch_from(a, 1, ahead, a->prefetch_end);
    kv_prefetch first_keys = prefetch_from(a, 0, first, ahead), first_values = prefetch_from(a, 1, first, ahead);
    prefetch_drain(&first_keys, a, 0);
    kv_tile tile;
    for (size_t at = a->from, place = 0; at < a->to; at += tile.rows, place += a->tile_stride) {
        tile = tile_at(&a->kv, at, a->to);
        tile_piece pieces[TILE_PIECES];
        const size_t n_pieces = tile_pieces(&a->kv, type, tile, 0, pieces);
        decode_scores(a, type, n, pieces, n_pieces, &keys, &first_values);
        prefetch_drain(&first_values, a, 1);
        for (size_t h = 0; h < a->kv.kv_heads * n; h++) {
            float *max = a->max + place + h, *sum = a->sum + place + h, old_scale, new_scale;
            *max = -INFINITY, *sum = 0;
            softmax_tile(a->scale, tile, (lane_range){tile.lane, tile.lane + tile.rows},
                         a->scratch + h * HK_SCORES_STRIDE, max, sum, &old_scale, &new_scale);
        }
        decode_values(a, type, n, pieces, n_pieces, &values, a->out + place);
    }
}

/* Any number of query heads per KV head, using the prefill kernel. */
static void decode_many(const hk_attend_decode *a) {
    const hk_kv_sequence *kv = &a->kv;
    query_set s;
    s.fresh = 1;
    kv_tile tile;
    for (size_t at = a->from, place = 0; at < a->to; at += tile.rows, place += a->tile_stride) {
        tile = tile_at(kv, at, a->to);
        for (size_t h = 0; h < kv->kv_heads * a->group; h += s.n) {
            const size_t head = h / a->group, left = (head + 1) * a->group - h;
            s.n = left < PREFILL_QUERIES ? left : PREFILL_QUERIES;
            for (size_t q = 0; q < s.n; q++) {
                s.q[q] = a->q + (h + q) * kv->key_dim;
                s.out[q] = a->out + place + (h + q) * kv->value_dim;
                s.seen[q] = (lane_range){tile.lane, tile.lane + tile.rows};
                s.max[q] = -INFINITY, s.sum[q] = 0;
            }
            attend_tile(kv, head, tile, a->scale, a->scratch, &s);
            for (size_t q = 0; q < s.n; q++) a->max[place + h + q] = s.max[q], a->sum[place + h + q] = s.sum[q];
        }
    }
}

#define DECODE(name, type)                                                  \
    static __attribute__((noinline)) void name(const hk_attend_decode *a) { \
        switch (a->group) { /* constants, so that sums stay in registers */ \
        case 1: decode_type(a, type, 1); break;                             \
        case 2: decode_type(a, type, 2); break;                             \
        case 3: decode_type(a, type, 3); break;                             \
        case 4: decode_type(a, type, 4); break;                             \
        default: decode_type(a, type, DECODE_QUERIES);                      \
        }                                                                   \
    }
DECODE(attend_decode_f32, HK_F32)
DECODE(attend_decode_f16, HK_F16)
DECODE(attend_decode_q8, HK_Q8_0)
#undef DECODE

static void attend_decode(const hk_attend_decode *a) {
    if (a->group > DECODE_QUERIES) {
        decode_many(a);
        return;
    }
    switch (a->kv.type) {
    case HK_F16: attend_decode_f16(a); break;
    case HK_Q8_0: attend_decode_q8(a); break;
    default: attend_decode_f32(a);
    }
}

#endif

/* Decode attention: a single token, whose queries of a head are few, so that transposing the keys would not pay. Heads
 * alternate, and software prefetch runs a fixed number of rows ahead, a line of each head in turn: memory works while
 * the CPU does, at as many places as there are heads, which is faster than at one, and what is prefetched fits L1 and
 * L2.
 *
 * Requires: attention_prefill-inl.h. */
#ifndef HYMBA_ATTENTION_DECODE_INL_H
#define HYMBA_ATTENTION_DECODE_INL_H

#define ATTEND_FEW 5   /* queries of a head at most, as published models have: their sums live in registers */
#define ATTEND_STEPS 4 /* of a loop at once, so that asking costs little beside them */
#define ATTEND_WIDE (VW_WHOLE ? 2 : 1) /* wide vectors of sums for each query */
#define ATTEND_GROUP 16                /* rows whose values meet one head before the next */
#define PREFETCH_ROWS 32               /* the prefetch distance */

/* Where software prefetch is: keys or values of all heads. */
typedef struct kv_prefetch {
    const char *at;     /* what is next */
    const char *wrap;   /* behind the last head's line */
    const char *stop;   /* where the rows that lie together end, of the first head */
    size_t apart, span; /* bytes from head to head, 0 when all is prefetched; of all heads */
    size_t row, end;    /* of the sequence: those behind `stop` */
} kv_prefetch;

/* Goes on to the next run. */
static __attribute__((noinline)) void prefetch_next_run(kv_prefetch *s, const hk_attend *a, int values) {
    const hk_rows *run = a->runs;
    for (size_t begin = 0; s->row < s->end; begin += run++->rows) {
        if (s->row >= begin + run->rows) continue;
        const size_t end = begin + run->rows < s->end ? begin + run->rows : s->end,
                     dim = values ? a->value_dim : a->key_dim;
        s->at = kv_at(a->type, values ? run->v : run->k, (s->row - begin) * dim);
        s->stop = s->at + kv_bytes(a->type, (end - s->row) * dim);
        s->apart = kv_bytes(a->type, values ? run->v_head_stride : run->k_head_stride);
        s->span = a->kv_heads * s->apart;
        s->wrap = s->at + s->span;
        s->row = end;
        return;
    }
    s->at = (const char *)a->scratch; /* which is in L1 */
    s->wrap = NULL;
    s->apart = 0;
}

/* Rows from .. end. */
HK_INLINE kv_prefetch prefetch_from(const hk_attend *a, int values, size_t from, size_t end) {
    kv_prefetch s = {.row = from, .end = end};
    prefetch_next_run(&s, a, values);
    return s;
}

HK_INLINE void prefetch_step(kv_prefetch *s, const hk_attend *a, int values, size_t bytes) {
    s->at += s->apart;
    if (s->at != s->wrap) return;
    s->at = s->at - s->span + bytes;
    s->wrap += bytes;
    if (s->at >= s->stop) prefetch_next_run(s, a, values);
}

/* Prefetches as much as is used meanwhile. A line or two at a time: AMD's CPUs drop prefetches that come faster than
 * memory answers. */
HK_INLINE void prefetch_next(kv_prefetch *s, const hk_attend *a, int values, size_t bytes) {
    prefetch_l2(s->at, bytes);
    prefetch_step(s, a, values, bytes);
}

/* Loads at once what there was no time to prefetch. */
HK_INLINE void prefetch_drain(kv_prefetch *s, const hk_attend *a, int values) {
    for (; s->apart > 0; prefetch_step(s, a, values, 64)) (void)*(const volatile char *)s->at;
}

/* n < VF_LANES values, and zeros */
HK_INLINE vf kv_tail(hk_type type, const void *p, size_t i, size_t n) {
    float values[VF_LANES] = {0};
    for (size_t j = 0; j < n; j++) values[j] = kv_value(type, p, i + j);
    return vf_load(values);
}

/* Keys j .. j + VF_LANES of some rows meet n queries. */
HK_INLINE void score_step(const float *q, size_t n, hk_type type, const void *const row[2 * ATTEND_WIDE],
                          size_t key_dim, size_t j, vw sum[ATTEND_FEW][ATTEND_WIDE]) {
    vw keys[ATTEND_WIDE];
    for (size_t i = 0; i < ATTEND_WIDE; i++)
        keys[i] = vw_pair(kv_load(type, row[2 * i], j), kv_load(type, row[2 * i + 1], j));
    for (size_t k = 0; k < n; k++) {
        vf v = vf_load(q + k * key_dim + j);
        OPT_BARRIER(v); /* loaded once: the loads are as many as the sums allow */
        for (size_t i = 0; i < ATTEND_WIDE; i++) sum[k][i] = vw_fma(vw_twice(v), keys[i], sum[k][i]);
    }
}

/* Products of a head's n queries with the keys of VF_LANES rows, of which the last is repeated if there are fewer. */
HK_INLINE void score_rows(const hk_attend *a, hk_type type, size_t n, size_t head, const char *k, size_t rows,
                          kv_prefetch *ahead, float *scores) {
    const float *q = a->q + head * n * a->key_dim;
    const size_t key_dim = a->key_dim, rest = key_dim % VF_LANES, whole = key_dim - rest, last = rows - 1,
                 step = 2 * ATTEND_WIDE;
    vf pair[ATTEND_FEW][VF_LANES / 2];
    for (size_t at = 0; at < VF_LANES / 2; at += ATTEND_WIDE) {
        const void *row[2 * ATTEND_WIDE];
        for (size_t i = 0; i < step; i++) row[i] = kv_at(type, k, (2 * at + i < last ? 2 * at + i : last) * key_dim);
        vw sum[ATTEND_FEW][ATTEND_WIDE];
        for (size_t h = 0; h < n; h++)
            for (size_t i = 0; i < ATTEND_WIDE; i++) sum[h][i] = vw_zero();
        size_t j = 0;
        for (; j + ATTEND_STEPS * VF_LANES <= whole; j += ATTEND_STEPS * VF_LANES)
#pragma GCC unroll 4
            for (size_t i = 0; i < ATTEND_STEPS; i++) {
                if (i % 2 == 0) prefetch_next(ahead, a, 0, kv_bytes(type, 2 * step * VF_LANES));
                score_step(q, n, type, row, key_dim, j + i * VF_LANES, sum);
            }
        for (; j < whole; j += VF_LANES) {
            prefetch_next(ahead, a, 0, kv_bytes(type, step * VF_LANES));
            score_step(q, n, type, row, key_dim, j, sum);
        }
        if (rest > 0)
            for (size_t i = 0; i < ATTEND_WIDE; i++) {
                const vw keys =
                    vw_pair(kv_tail(type, row[2 * i], whole, rest), kv_tail(type, row[2 * i + 1], whole, rest));
#pragma GCC unroll 5
                for (size_t h = 0; h < n; h++)
                    sum[h][i] = vw_fma(vw_twice(kv_tail(HK_F32, q + h * key_dim, whole, rest)), keys, sum[h][i]);
            }
        for (size_t h = 0; h < n; h++)
            for (size_t i = 0; i < ATTEND_WIDE; i++) pair[h][at + i] = vf_pair(vw_low(sum[h][i]), vw_high(sum[h][i]));
    }
    for (size_t h = 0; h < n; h++) vf_store(scores + h * HK_ATTEND_SCORES, vf_sums_of_pairs(pair[h]));
}

/* `width` wide vectors of columns, from j on, of weights . V for n queries, or of that added to out. */
HK_INLINE void value_columns(const hk_attend *a, hk_type type, size_t n, size_t width, const float *weights,
                             const char *v, size_t rows, size_t j, int fresh, kv_prefetch *ahead, float *out) {
    const size_t value_dim = a->value_dim;
    vw sum[ATTEND_FEW][ATTEND_WIDE];
    for (size_t h = 0; h < n; h++)
        for (size_t i = 0; i < width; i++)
            sum[h][i] = fresh ? vw_zero() : vw_load(out + h * value_dim + j + i * VW_LANES);
#define VALUE_ROW(r)                                                                                              \
    {                                                                                                             \
        vw values[ATTEND_WIDE];                                                                                   \
        for (size_t i = 0; i < width; i++) values[i] = kv_load_wide(type, v, (r) * value_dim + j + i * VW_LANES); \
        for (size_t h = 0; h < n; h++) {                                                                          \
            const vw p = vw_set1(weights[h * HK_ATTEND_SCORES + (r)]);                                            \
            for (size_t i = 0; i < width; i++) sum[h][i] = vw_fma(p, values[i], sum[h][i]);                       \
        }                                                                                                         \
    }
    size_t r = 0;
    for (; r + ATTEND_STEPS <= rows; r += ATTEND_STEPS)
#pragma GCC unroll 4
        for (size_t k = 0; k < ATTEND_STEPS; k++) {
            if (k % 2 == 0) prefetch_next(ahead, a, 1, kv_bytes(type, 2 * width * VW_LANES));
            VALUE_ROW(r + k)
        }
    for (; r < rows; r++) VALUE_ROW(r)
#undef VALUE_ROW
    for (size_t h = 0; h < n; h++)
        for (size_t i = 0; i < width; i++) vw_store(out + h * value_dim + j + i * VW_LANES, sum[h][i]);
}

/* All columns. */
HK_INLINE void value_rows(const hk_attend *a, hk_type type, size_t n, const float *weights, const char *v, size_t rows,
                          int fresh, kv_prefetch *ahead, float *out) {
    const size_t value_dim = a->value_dim;
    size_t j = 0;
    for (; j + ATTEND_WIDE * VW_LANES <= value_dim; j += ATTEND_WIDE * VW_LANES)
        value_columns(a, type, n, ATTEND_WIDE, weights, v, rows, j, fresh, ahead, out);
    for (; ATTEND_WIDE > 1 && j + VW_LANES <= value_dim; j += VW_LANES)
        value_columns(a, type, n, 1, weights, v, rows, j, fresh, ahead, out);
    for (; j < value_dim; j++)
        for (size_t h = 0; h < n; h++) {
            float *y = out + h * value_dim + j, sum = fresh ? 0 : *y;
            for (size_t r = 0; r < rows; r++)
                sum = fmaf(weights[h * HK_ATTEND_SCORES + r], kv_value(type, v, r * value_dim + j), sum);
            *y = sum;
        }
}

/* n: the queries of a head */
HK_INLINE void attend_token_type(const hk_attend *a, hk_type type, size_t n) {
    const size_t prefetch_end = a->from + PREFETCH_ROWS < a->prefetch_end ? a->from + PREFETCH_ROWS : a->prefetch_end,
                 first = a->prefetched ? prefetch_end : a->from;
    kv_prefetch keys = prefetch_from(a, 0, prefetch_end, a->prefetch_end),
                values = prefetch_from(a, 1, prefetch_end, a->prefetch_end);
    kv_prefetch first_keys = prefetch_from(a, 0, first, prefetch_end),
                first_values = prefetch_from(a, 1, first, prefetch_end);
    prefetch_drain(&first_keys, a, 0);
    for (size_t at = a->from, rows, place = 0; at < a->to; at += rows, place += a->tile_stride) {
        rows = tile_rows(a, at);
        attend_piece pieces[ATTEND_PIECES];
        const size_t n_pieces = tile_pieces(a, type, at, rows, 0, pieces);
        for (const attend_piece *piece = pieces; piece < pieces + n_pieces; piece++)
            for (size_t r = 0; r < piece->rows; r += VF_LANES)
                for (size_t head = 0; head < a->kv_heads; head++) {
                    score_rows(a, type, n, head, kv_at(type, piece->k, head * piece->k_head_stride + r * a->key_dim),
                               piece->rows - r, &keys, a->scratch + head * n * HK_ATTEND_SCORES + piece->lane + r);
                    for (size_t i = 0; first_values.apart > 0 && i < VF_LANES; i++)
                        prefetch_next(&first_values, a, 1, 64);
                }
        prefetch_drain(&first_values, a, 1);
        for (size_t h = 0; h < a->kv_heads * n; h++) {
            float *max = a->max + place + h, *sum = a->sum + place + h, keep, add;
            *max = -INFINITY, *sum = 0;
            softmax_tile(a, 0, at, rows, a->scratch + h * HK_ATTEND_SCORES, max, sum, &keep, &add);
        }
        for (const attend_piece *piece = pieces; piece < pieces + n_pieces; piece++)
            for (size_t r = 0, some; r < piece->rows; r += some) {
                some = piece->rows - r < ATTEND_GROUP ? piece->rows - r : ATTEND_GROUP;
                for (size_t head = 0; head < a->kv_heads; head++)
                    value_rows(a, type, n, a->scratch + head * n * HK_ATTEND_SCORES + piece->lane + r,
                               kv_at(type, piece->v, head * piece->v_head_stride + r * a->value_dim), some,
                               piece == pieces && r == 0, &values, a->out + place + head * n * a->value_dim);
            }
    }
}

#define ATTEND_TOKEN(name, type)                                                   \
    static __attribute__((noinline)) void name(const hk_attend *a) {               \
        switch (a->group) { /* constants: the sums of queries live in registers */ \
        case 1: attend_token_type(a, type, 1); break;                              \
        case 2: attend_token_type(a, type, 2); break;                              \
        case 3: attend_token_type(a, type, 3); break;                              \
        case 4: attend_token_type(a, type, 4); break;                              \
        default: attend_token_type(a, type, ATTEND_FEW);                           \
        }                                                                          \
    }
ATTEND_TOKEN(attend_token_f32, HK_F32)
ATTEND_TOKEN(attend_token_f16, HK_F16)
ATTEND_TOKEN(attend_token_q8, HK_Q8_0)

static void attend(const hk_attend *a) {
    /* that of a last token of many is added up tile by tile, with the scratch of many */
    const int few = a->tokens == 1 && a->tile_stride > 0 && a->group <= ATTEND_FEW;
    if (a->type == HK_F16)
        (few ? attend_token_f16 : attend_f16)(a);
    else if (a->type == HK_Q8_0)
        (few ? attend_token_q8 : attend_q8)(a);
    else
        (few ? attend_token_f32 : attend_f32)(a);
}

#endif

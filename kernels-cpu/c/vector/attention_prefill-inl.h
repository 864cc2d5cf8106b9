/* Attention: some tokens' queries over a sequence of rows, tile by tile, so that the scores of a tile are all that is
 * ever held. Here many queries share a head: keys are transposed, a row a lane, and values made floats, a strip for all
 * queries at a time; a strip stays in L1. A single token has its own kernel, attention_decode-inl.h.
 *
 * Many queries or few, a query's answer has the same bits: products of a key are added in eight sums, as they lie, and
 * these as `vf_sums` adds lanes; a tile's rows lie in fixed lanes, seen or not, and are added in their order; so are
 * the tiles.
 *
 * Requires: tiles.h, wide-inl.h, math-inl.h. */
#ifndef HYMBA_ATTENTION_PREFILL_INL_H
#define HYMBA_ATTENTION_PREFILL_INL_H

#define ATTEND_ROWS HK_ATTEND_ROWS /* of a tile */
#define ATTEND_STRIP \
    VW_LANES              /* lanes of a tile whose keys are transposed at once, and columns whose values are widened */
#define ATTEND_PIECES 4   /* runs that a tile may have rows of */
#define ATTEND_QUERIES 40 /* whose scores of a tile are held at once */
#define ATTEND_BLOCK (VW_WHOLE ? 10 : 6) /* queries whose sums live in registers */

/* p: values of K or V, in HK_Q8_0 from the beginning of a block on */
HK_INLINE vf kv_load(hk_type type, const void *p, size_t i) {
    if (type == HK_Q8_0) {
        const char *block = (const char *)p + q8_offset(i);
        return vf_mul(vf_set1(f16_scale(block)), vf_load_i8((const int8_t *)block + 2 + i % HK_BLOCK));
    }
    return type == HK_F16 ? vf_load_f16((const uint16_t *)p + i) : vf_load((const float *)p + i);
}

HK_INLINE vw kv_load_wide(hk_type type, const void *p, size_t i) {
    if (type == HK_F16) return vw_load_f16((const uint16_t *)p + i);
    return vw_pair(kv_load(type, p, i), kv_load(type, p, i + VF_LANES));
}

/* Adds a part of the answer whose maximum is `more`: the factors of what was there, and of what is added. */
HK_INLINE void online_softmax_rescale(float *max, float more, float *keep, float *add) {
    const float before = *max;
    *max = more > before ? more : before;
    *keep = before == -INFINITY ? 0 : 1;
    *add = 1;
    if (before == more || before == -INFINITY) return;
    float factor[VF_LANES]; /* of the smaller; a NaN stays one */
    vf_store(factor, vf_exp(vf_set1(more > before ? before - more : more - before)));
    *(more > before ? keep : add) = factor[0];
}

HK_INLINE vw added(vw out, float keep, vw part, float add) {
    return vw_fma(part, vw_set1(add), vw_mul(out, vw_set1(keep)));
}

/* Rows of a tile that lie in one run: those of one kv head, and how many values behind them those of the next head are.
 */
typedef struct attend_piece {
    const void *k, *v;
    size_t k_head_stride, v_head_stride, lane, rows;
} attend_piece;

/* Queries of one kv head. */
typedef struct attend_queries {
    size_t n;
    int fresh;                      /* nothing was added so far */
    const float *q[ATTEND_QUERIES]; /* [key_dim] */
    float *out[ATTEND_QUERIES];     /* [value_dim] */
    float *max[ATTEND_QUERIES], *sum[ATTEND_QUERIES];
    size_t token[ATTEND_QUERIES];
    float keep[ATTEND_QUERIES], add[ATTEND_QUERIES]; /* factors of the answer so far, and of the tile's */
    float scores[ATTEND_QUERIES][HK_ATTEND_SCORES];
} attend_queries;

/* The keys of the strip of lanes that begins at `from`, transposed: [key_dim, HK_ATTEND_SCRATCH]. */
HK_INLINE void transpose_keys(hk_type type, const attend_piece *pieces, size_t n_pieces, size_t key_dim, size_t from,
                              float *keys_t) {
    for (const attend_piece *piece = pieces; piece < pieces + n_pieces; piece++) {
        const size_t begin = piece->lane > from ? piece->lane : from;
        const size_t end =
            piece->lane + piece->rows < from + ATTEND_STRIP ? piece->lane + piece->rows : from + ATTEND_STRIP;
        for (size_t lane = begin; lane < end;
             lane += VF_LANES) { /* some more lanes may be written, of which the next pieces are */
            const size_t n = end - lane < VF_LANES ? end - lane : VF_LANES;
            const void *k = kv_at(type, piece->k, (lane - piece->lane) * key_dim);
            float *out = keys_t + lane - from;
            size_t j = 0;
            for (; j + VF_LANES <= key_dim; j += VF_LANES, out += VF_LANES * HK_ATTEND_SCRATCH) {
                vf square[VF_LANES];
                for (size_t i = 0; i < VF_LANES; i++) square[i] = i < n ? kv_load(type, k, i * key_dim + j) : vf_zero();
                vf_transpose(square);
                for (size_t i = 0; i < VF_LANES; i++) vf_store(out + i * HK_ATTEND_SCRATCH, square[i]);
            }
            for (; j < key_dim; j++, out += HK_ATTEND_SCRATCH)
                for (size_t i = 0; i < n; i++) out[i] = kv_value(type, k, i * key_dim + j);
        }
    }
}

/* Products of n queries with the transposed keys of a strip. */
HK_INLINE void score_strip(attend_queries *s, size_t q0, size_t n, const float *keys_t, size_t from, size_t key_dim) {
    vw sums[VF_LANES][ATTEND_BLOCK];
#pragma GCC unroll 1
    for (size_t lane = 0; lane < VF_LANES; lane++) {
        vw sum[ATTEND_BLOCK];
        for (size_t q = 0; q < n; q++) sum[q] = vw_zero();
        for (size_t j = lane; j < key_dim; j += VF_LANES) {
            const vw keys = vw_load(keys_t + j * HK_ATTEND_SCRATCH);
            for (size_t q = 0; q < n; q++) sum[q] = vw_fma(vw_set1(s->q[q0 + q][j]), keys, sum[q]);
        }
        for (size_t q = 0; q < n; q++) sums[lane][q] = sum[q];
    }
#pragma GCC unroll 1
    for (size_t q = 0; q < n; q++) { /* as `vf_sums` adds lanes */
        const vw even = vw_add(vw_add(sums[0][q], sums[2][q]), vw_add(sums[1][q], sums[3][q]));
        const vw odd = vw_add(vw_add(sums[4][q], sums[6][q]), vw_add(sums[5][q], sums[7][q]));
        vw_store(s->scores[q0 + q] + from, vw_add(even, odd));
    }
}

/* A tile's products of its keys with a query of token t to exp(scale * product - their maximum), or to zero where the
 * token does not see the row; max and sum go on, by the factors keep and add. */
HK_INLINE void softmax_tile(const hk_attend *a, size_t t, size_t at, size_t rows, float *scores, float *max, float *sum,
                            float *keep, float *add) {
    /* the prefix is seen by all; of what follows, first .. end */
    const size_t first = a->first[t], end = a->end[t], lane = tile_lane(a, at);
    const size_t begin = lane + (at < a->prefix || first <= at ? 0 : first - at < rows ? first - at : rows);
    const size_t stop = lane + (at < a->prefix || end >= at + rows ? rows : end > at ? end - at : 0);
    if (begin >= stop) {
        *keep = *add = 1;
        for (size_t r = lane; r < lane + rows; r++) scores[r] = 0;
        return;
    }
    const size_t from = begin / VW_LANES * VW_LANES, to = (stop + VW_LANES - 1) / VW_LANES * VW_LANES;
    for (size_t r = from; r < begin; r++) scores[r] = -INFINITY;
    for (size_t r = stop; r < to; r++) scores[r] = -INFINITY;
    const vw factor = vw_set1(a->scale);
    vw top = vw_set1(-INFINITY);
    for (size_t r = from; r < to; r += VW_LANES) top = vw_max(top, vw_mul(vw_load(scores + r), factor));
    const float here = vf_reduce_max(vf_max(vw_low(top), vw_high(top)));
    vw total = vw_zero();
    for (size_t r = from; r < to; r += VW_LANES) {
        const vw e = vw_exp(vw_fma(vw_load(scores + r), factor, vw_set1(-here)));
        vw_store(scores + r, e);
        total = vw_add(total, e);
    }
    if (from < begin || stop < to) {
        for (size_t r = from; r < begin; r++) scores[r] = 0;
        for (size_t r = stop; r < to; r++) scores[r] = 0;
        total = vw_zero();
        for (size_t r = from; r < to; r += VW_LANES) total = vw_add(total, vw_load(scores + r));
    }
    for (size_t r = lane; r < from; r++) scores[r] = 0;
    for (size_t r = to; r < lane + rows; r++) scores[r] = 0;
    online_softmax_rescale(max, here, keep, add);
    *sum = *sum * *keep + vf_reduce_sum(vf_add(vw_low(total), vw_high(total))) * *add;
}

/* Columns j .. j + ATTEND_STRIP of V: a row of `strip` for each lane. */
HK_INLINE void widen_values(hk_type type, const attend_piece *pieces, size_t n_pieces, size_t value_dim, size_t j,
                            float strip[ATTEND_ROWS][ATTEND_STRIP]) {
    for (size_t i = 0; i < n_pieces; i++)
        for (size_t r = 0; r < pieces[i].rows; r++)
            vw_store(strip[pieces[i].lane + r], kv_load_wide(type, pieces[i].v, r * value_dim + j));
}

/* The columns of `strip`, from j on, of out = out * keep + (scores . V) * add, or of scores . V; a tile's pieces lie in
 * lanes begin .. end without gaps. */
HK_INLINE void value_strip(attend_queries *s, size_t q0, size_t n, size_t begin, size_t end, size_t j,
                           float strip[ATTEND_ROWS][ATTEND_STRIP]) {
    vw sum[ATTEND_BLOCK];
    for (size_t q = 0; q < n; q++) sum[q] = vw_zero();
    const float *scores = s->scores[q0];
#pragma GCC unroll 2
    for (size_t r = begin; r < end; r++) {
        const vw values = vw_load(strip[r]);
        for (size_t q = 0; q < n; q++) sum[q] = vw_fma(vw_set1(scores[q * HK_ATTEND_SCORES + r]), values, sum[q]);
    }
    for (size_t q = 0; q < n; q++) {
        float *out = s->out[q0 + q] + j;
        vw_store(out, s->fresh ? sum[q] : added(vw_load(out), s->keep[q0 + q], sum[q], s->add[q0 + q]));
    }
}

/* The same for column j of all queries. */
HK_INLINE void value_column(attend_queries *s, hk_type type, const attend_piece *pieces, size_t n_pieces,
                            size_t value_dim, size_t j) {
    for (size_t q = 0; q < s->n; q++) {
        float sum = 0;
        for (const attend_piece *piece = pieces; piece < pieces + n_pieces; piece++)
            for (size_t r = 0; r < piece->rows; r++)
                sum = fmaf(s->scores[q][piece->lane + r], kv_value(type, piece->v, r * value_dim + j), sum);
        s->out[q][j] = s->fresh ? sum : fmaf(sum, s->add[q], s->out[q][j] * s->keep[q]);
    }
}

/* One tile: sequence rows from `at` on, in pieces. */
HK_INLINE void attend_tile(const hk_attend *a, hk_type type, attend_queries *s, size_t at, size_t rows,
                           const attend_piece *pieces, size_t n_pieces) {
    const size_t lane = tile_lane(a, at);
#define EACH_BLOCK(call)                                                 \
    for (size_t q = 0, n; q < s->n; q += n) {                            \
        n = s->n - q;                                                    \
        switch (n) { /* constants, so that the sums live in registers */ \
        case 1:                                                          \
            n = 1;                                                       \
            call(1);                                                     \
            break;                                                       \
        case 2:                                                          \
            n = 2;                                                       \
            call(2);                                                     \
            break;                                                       \
        case 3:                                                          \
            n = 3;                                                       \
            call(3);                                                     \
            break;                                                       \
        case 4:                                                          \
            n = 4;                                                       \
            call(4);                                                     \
            break;                                                       \
        case 5:                                                          \
            n = 5;                                                       \
            call(5);                                                     \
            break;                                                       \
        default:                                                         \
            if (n >= ATTEND_BLOCK) {                                     \
                n = ATTEND_BLOCK;                                        \
                call(ATTEND_BLOCK);                                      \
            } else {                                                     \
                n = 6;                                                   \
                call(6);                                                 \
            }                                                            \
        }                                                                \
    }
#define SCORES(n) score_strip(s, q, n, a->scratch, r, a->key_dim)
#define VALUES(n) value_strip(s, q, n, lane, lane + rows, j, strip)
    for (size_t r = lane / VF_LANES * VF_LANES; r < lane + rows; r += ATTEND_STRIP) {
        transpose_keys(type, pieces, n_pieces, a->key_dim, r, a->scratch);
        EACH_BLOCK(SCORES)
    }
    for (size_t q = 0; q < s->n; q++)
        softmax_tile(a, s->token[q], at, rows, s->scores[q], s->max[q], s->sum[q], &s->keep[q], &s->add[q]);
    float strip[ATTEND_ROWS][ATTEND_STRIP];
    size_t j = 0;
    for (; j + ATTEND_STRIP <= a->value_dim; j += ATTEND_STRIP) {
        widen_values(type, pieces, n_pieces, a->value_dim, j, strip);
        EACH_BLOCK(VALUES)
    }
    for (; j < a->value_dim; j++) value_column(s, type, pieces, n_pieces, a->value_dim, j);
#undef EACH_BLOCK
#undef SCORES
#undef VALUES
}

/* The pieces of the tile of rows at .. at + rows, for one kv head. */
HK_INLINE size_t tile_pieces(const hk_attend *a, hk_type type, size_t at, size_t rows, size_t head,
                             attend_piece pieces[ATTEND_PIECES]) {
    const size_t lane = tile_lane(a, at);
    size_t n = 0;
    for (size_t i = 0, begin = 0; i < a->n_runs && begin < at + rows; begin += a->runs[i++].rows) {
        const hk_rows *run = a->runs + i;
        const size_t end = begin + run->rows, from = at > begin ? at : begin, to = at + rows < end ? at + rows : end;
        if (from >= to) continue;
        pieces[n++] = (attend_piece){
            .k = kv_at(type, run->k, head * run->k_head_stride + (from - begin) * a->key_dim),
            .v = kv_at(type, run->v, head * run->v_head_stride + (from - begin) * a->value_dim),
            .k_head_stride = run->k_head_stride,
            .v_head_stride = run->v_head_stride,
            .lane = lane + from - at,
            .rows = to - from,
        };
    }
    return n;
}

HK_INLINE void attend_type(const hk_attend *a, hk_type type) {
    const size_t heads = a->kv_heads * a->group, all = a->tokens * a->group;
    attend_queries s;
    for (size_t at = a->from, rows, place = 0; at < a->to; at += rows, place += a->tile_stride) {
        rows = tile_rows(a, at);
        s.fresh = at == a->from || a->tile_stride > 0;
        attend_piece pieces[ATTEND_PIECES];
        for (size_t head = 0; head < a->kv_heads; head++) {
            const size_t n_pieces = tile_pieces(a, type, at, rows, head, pieces);
            for (size_t q0 = 0; q0 < all; q0 += ATTEND_QUERIES) {
                s.n = all - q0 < ATTEND_QUERIES ? all - q0 : ATTEND_QUERIES;
                for (size_t q = 0; q < s.n; q++) {
                    const size_t t = (q0 + q) / a->group, h = head * a->group + (q0 + q) % a->group;
                    s.token[q] = t;
                    s.q[q] = a->q + t * a->q_stride + h * a->key_dim;
                    s.out[q] = a->out + place + t * a->out_stride + h * a->value_dim;
                    s.max[q] = a->max + place + t * heads + h;
                    s.sum[q] = a->sum + place + t * heads + h;
                    if (s.fresh) *s.max[q] = -INFINITY, *s.sum[q] = 0;
                }
                attend_tile(a, type, &s, at, rows, pieces, n_pieces);
            }
        }
    }
}

/* functions, lest the compiler mix them */
static __attribute__((noinline)) void attend_f32(const hk_attend *a) { attend_type(a, HK_F32); }
static __attribute__((noinline)) void attend_f16(const hk_attend *a) { attend_type(a, HK_F16); }
static __attribute__((noinline)) void attend_q8(const hk_attend *a) { attend_type(a, HK_Q8_0); }

/* of VF_LANES heads at most */
HK_INLINE void combine_heads(const float *max, const float *sum, size_t stride, const float *values,
                             size_t values_stride, size_t n, size_t heads, size_t value_dim, float *y) {
    float most[VF_LANES], total[VF_LANES], keep[VF_LANES], add[VF_LANES];
    for (size_t h = 0; h < heads; h++) most[h] = max[h], total[h] = sum[h];
    for (size_t i = 0; i < n; i++) {
        if (i > 0)
            for (size_t h = 0; h < heads; h++) {
                online_softmax_rescale(&most[h], max[i * stride + h], &keep[h], &add[h]);
                total[h] = total[h] * keep[h] + sum[i * stride + h] * add[h];
            }
        for (size_t h = 0; h < heads; h++) {
            const float *v = values + i * values_stride + h * value_dim;
            float *out = y + h * value_dim;
            size_t j = 0;
            for (; j + VW_LANES <= value_dim; j += VW_LANES)
                vw_store(out + j, i == 0 ? vw_load(v + j) : added(vw_load(out + j), keep[h], vw_load(v + j), add[h]));
            for (; j < value_dim; j++) out[j] = i == 0 ? v[j] : fmaf(v[j], add[h], out[j] * keep[h]);
        }
    }
    for (size_t h = 0; h < heads; h++)
        for (size_t j = h * value_dim; j < (h + 1) * value_dim; j++) y[j] /= total[h];
}

static void combine_partials(const float *max, const float *sum, size_t stride, const float *values,
                             size_t values_stride, size_t n, size_t heads, size_t value_dim, float *y) {
    for (size_t h = 0, some; h < heads; h += some) {
        some = heads - h < VF_LANES ? heads - h : VF_LANES;
        combine_heads(max + h, sum + h, stride, values + h * value_dim, values_stride, n, some, value_dim,
                      y + h * value_dim);
    }
}

#endif

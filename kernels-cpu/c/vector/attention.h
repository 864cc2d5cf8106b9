/* Attention: some tokens' queries over a sequence of rows, tile by tile, so that the scores of a tile are all that is ever
 * held. Where many queries share a head, keys are turned, a row a lane, and values made floats, a strip for all queries at a
 * time; a strip stays in the first level of the cache.
 *
 * Many queries or few, a query's answer has the same bits: products of a key are added in eight sums, as they lie, and these
 * as `vf_sums` adds lanes; a tile's rows lie in fixed lanes, seen or not, and are added in their order; so are the tiles. */

#define ATTEND_ROWS HK_ATTEND_ROWS /* of a tile */
#define ATTEND_STRIP VW_LANES      /* lanes of a tile whose keys are turned at once, and columns whose values are widened */
#define ATTEND_PIECES 4            /* runs that a tile may have rows of */
#define ATTEND_SCORES (ATTEND_ROWS + VF_LANES) /* of a query: some more may be written */
#define ATTEND_QUERIES 40          /* whose scores of a tile are held at once */
#define ATTEND_BLOCK 6             /* queries whose sums live in registers, and are few */
#define ATTEND_STEPS 4             /* of a loop at once, so that asking costs little beside them */
#if VW_WHOLE
#define ATTEND_MANY 10 /* the same where many queries share the keys */
#define ATTEND_WIDE 2  /* wide vectors of sums for each of few queries */
#else
#define ATTEND_MANY ATTEND_BLOCK
#define ATTEND_WIDE 1
#endif

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

/* What is needed soon is asked for in the order in which it lies, as much at a time as is used: heads lie side by side, so
 * that the rows of one are far apart, and the CPU would not foresee them. */
typedef struct attend_ahead {
    const char *at, *stop; /* of the row at hand */
    hk_soon soon;          /* rows behind it */
    const hk_soon *next, *end;
} attend_ahead;

HK_INLINE void ask_ahead(attend_ahead *a, size_t bytes) {
    if (a->at >= a->stop) {
        if (a->soon.rows == 0) {
            if (a->next == a->end) return;
            a->soon = *a->next++;
        }
        a->at = a->soon.at;
        a->stop = a->at + a->soon.width;
        a->soon.at = a->at + a->soon.stride;
        a->soon.rows--;
    }
    prefetch_lines(a->at, bytes);
    a->at += bytes;
}

/* Brings nearer at once what was not asked for. */
HK_INLINE void touch(hk_soon s) {
    for (const char *at = s.at; s.rows > 0; s.rows--, at += s.stride)
        for (size_t i = 0; i < s.width; i += 64) (void)*(const volatile char *)(at + i);
}

/* Adds a part of the answer whose maximum is `more`: the factors of what was there, and of what is added. */
HK_INLINE void add_part(float *max, float more, float *keep, float *add) {
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

/* Rows of a tile that lie in one run: for one kv head. */
typedef struct attend_piece {
    const void *k, *v;
    size_t lane, rows;
} attend_piece;

/* Queries of one kv head. */
typedef struct attend_queries {
    size_t n;
    int fresh;                           /* nothing was added so far */
    const float *q[ATTEND_QUERIES];      /* [key_dim] */
    float *out[ATTEND_QUERIES];          /* [value_dim] */
    float *max[ATTEND_QUERIES], *sum[ATTEND_QUERIES];
    size_t token[ATTEND_QUERIES];
    attend_ahead keys, values;           /* what is asked for beside them */
    float keep[ATTEND_QUERIES], add[ATTEND_QUERIES]; /* factors of the answer so far, and of the tile's */
    float scores[ATTEND_QUERIES][ATTEND_SCORES];
} attend_queries;

/* The keys of the strip of lanes that begins at `from`, turned: [key_dim, HK_ATTEND_SCRATCH]. */
HK_INLINE void turn_keys(hk_type type, const attend_piece *pieces, size_t n_pieces, size_t stride, size_t key_dim,
                         size_t from, float *turned) {
    for (const attend_piece *piece = pieces; piece < pieces + n_pieces; piece++) {
        const size_t begin = piece->lane > from ? piece->lane : from;
        const size_t end = piece->lane + piece->rows < from + ATTEND_STRIP ? piece->lane + piece->rows : from + ATTEND_STRIP;
        for (size_t lane = begin; lane < end; lane += VF_LANES) { /* some more lanes may be written, of which the next pieces are */
            const size_t n = end - lane < VF_LANES ? end - lane : VF_LANES;
            const void *k = kv_at(type, piece->k, (lane - piece->lane) * stride);
            float *out = turned + lane - from;
            size_t j = 0;
            for (; j + VF_LANES <= key_dim; j += VF_LANES, out += VF_LANES * HK_ATTEND_SCRATCH) {
                vf square[VF_LANES];
                for (size_t i = 0; i < VF_LANES; i++) square[i] = i < n ? kv_load(type, k, i * stride + j) : vf_zero();
                vf_transpose(square);
                for (size_t i = 0; i < VF_LANES; i++) vf_store(out + i * HK_ATTEND_SCRATCH, square[i]);
            }
            for (; j < key_dim; j++, out += HK_ATTEND_SCRATCH)
                for (size_t i = 0; i < n; i++) out[i] = kv_value(type, k, i * stride + j);
        }
    }
}

/* Products of n queries with the turned keys of a strip. */
HK_INLINE void score_strip(attend_queries *s, size_t q0, size_t n, const float *turned, size_t from, size_t key_dim) {
    vw sums[VF_LANES][ATTEND_MANY];
#pragma GCC unroll 1
    for (size_t lane = 0; lane < VF_LANES; lane++) {
        vw sum[ATTEND_MANY];
        for (size_t q = 0; q < n; q++) sum[q] = vw_zero();
        for (size_t j = lane; j < key_dim; j += VF_LANES) {
            const vw keys = vw_load(turned + j * HK_ATTEND_SCRATCH);
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

/* n < VF_LANES values, and zeros */
HK_INLINE vf kv_tail(hk_type type, const void *p, size_t i, size_t n) {
    float values[VF_LANES] = {0};
    for (size_t j = 0; j < n; j++) values[j] = kv_value(type, p, i + j);
    return vf_load(values);
}

/* Keys j .. j + VF_LANES of some rows meet n queries. */
HK_INLINE void score_step(const attend_queries *s, size_t n, hk_type type, const void *const row[2 * ATTEND_WIDE], size_t j,
                          vw sum[ATTEND_BLOCK][ATTEND_WIDE]) {
    vw keys[ATTEND_WIDE];
    for (size_t i = 0; i < ATTEND_WIDE; i++) keys[i] = vw_pair(kv_load(type, row[2 * i], j), kv_load(type, row[2 * i + 1], j));
    for (size_t q = 0; q < n; q++) {
        vf v = vf_load(s->q[q] + j);
        OPAQUE(v); /* loaded once: the loads are as many as the sums allow */
        for (size_t i = 0; i < ATTEND_WIDE; i++) sum[q][i] = vw_fma(vw_twice(v), keys[i], sum[q][i]);
    }
}

/* The same for few queries, which would not repay the turning: the keys of some rows at a time meet all of them as they
 * lie, and the lanes are added up for eight rows at once. Up to VF_LANES - 1 more scores are written. */
HK_INLINE void score_rows(attend_queries *s, size_t n, hk_type type, attend_piece piece, size_t stride, size_t key_dim) {
    const size_t rest = key_dim % VF_LANES, whole = key_dim - rest, last = piece.rows - 1, step = 2 * ATTEND_WIDE;
    for (size_t r0 = 0; r0 < piece.rows; r0 += VF_LANES) {
        vf pair[ATTEND_BLOCK][VF_LANES / 2];
        for (size_t at = 0; at < VF_LANES / 2; at += ATTEND_WIDE) {
            const void *row[2 * ATTEND_WIDE];
            for (size_t i = 0; i < step; i++) {
                const size_t r = r0 + 2 * at + i;
                row[i] = kv_at(type, piece.k, (r < last ? r : last) * stride);
            }
            vw sum[ATTEND_BLOCK][ATTEND_WIDE];
            for (size_t q = 0; q < n; q++)
                for (size_t i = 0; i < ATTEND_WIDE; i++) sum[q][i] = vw_zero();
            size_t j = 0;
            for (; j + ATTEND_STEPS * VF_LANES <= whole; j += ATTEND_STEPS * VF_LANES)
#pragma GCC unroll 4
                for (size_t i = 0; i < ATTEND_STEPS; i++) {
                    if (i % 2 == 0) ask_ahead(&s->keys, kv_bytes(type, 2 * step * VF_LANES));
                    score_step(s, n, type, row, j + i * VF_LANES, sum);
                }
            for (; j < whole; j += VF_LANES) {
                ask_ahead(&s->keys, kv_bytes(type, step * VF_LANES));
                score_step(s, n, type, row, j, sum);
            }
            if (rest > 0)
                for (size_t i = 0; i < ATTEND_WIDE; i++) {
                    const vw keys = vw_pair(kv_tail(type, row[2 * i], whole, rest), kv_tail(type, row[2 * i + 1], whole, rest));
#pragma GCC unroll 6
                    for (size_t q = 0; q < n; q++)
                        sum[q][i] = vw_fma(vw_twice(kv_tail(HK_F32, s->q[q], whole, rest)), keys, sum[q][i]);
                }
            for (size_t q = 0; q < n; q++)
                for (size_t i = 0; i < ATTEND_WIDE; i++) pair[q][at + i] = vf_pair(vw_low(sum[q][i]), vw_high(sum[q][i]));
        }
        for (size_t q = 0; q < n; q++) vf_store(s->scores[q] + piece.lane + r0, vf_sums_of_pairs(pair[q]));
    }
}

/* Products to exp(scale * product - their maximum) where begin <= lane < end, to zero in the tile's other lanes; max and sum
 * go on. */
HK_INLINE void softmax_tile(attend_queries *s, size_t q, float scale, size_t lane, size_t rows, size_t begin, size_t end) {
    float *scores = s->scores[q], *max = s->max[q], *sum = s->sum[q];
    const size_t from = begin / VW_LANES * VW_LANES, to = (end + VW_LANES - 1) / VW_LANES * VW_LANES;
    for (size_t r = from; r < begin; r++) scores[r] = -INFINITY;
    for (size_t r = end; r < to; r++) scores[r] = -INFINITY;
    const vw factor = vw_set1(scale);
    vw top = vw_set1(-INFINITY);
    for (size_t r = from; r < to; r += VW_LANES) top = vw_max(top, vw_mul(vw_load(scores + r), factor));
    const float here = vf_top(vf_max(vw_low(top), vw_high(top)));
    vw total = vw_zero();
    for (size_t r = from; r < to; r += VW_LANES) {
        const vw e = vw_exp(vw_fma(vw_load(scores + r), factor, vw_set1(-here)));
        vw_store(scores + r, e);
        total = vw_add(total, e);
    }
    if (from < begin || end < to) {
        for (size_t r = from; r < begin; r++) scores[r] = 0;
        for (size_t r = end; r < to; r++) scores[r] = 0;
        total = vw_zero();
        for (size_t r = from; r < to; r += VW_LANES) total = vw_add(total, vw_load(scores + r));
    }
    for (size_t r = lane; r < from; r++) scores[r] = 0;
    for (size_t r = to; r < lane + rows; r++) scores[r] = 0;
    add_part(max, here, &s->keep[q], &s->add[q]);
    *sum = *sum * s->keep[q] + vf_sum(vf_add(vw_low(total), vw_high(total))) * s->add[q];
}

/* Columns j .. j + ATTEND_STRIP of V: a row of `strip` for each lane. */
HK_INLINE void widen_values(hk_type type, const attend_piece *pieces, size_t n_pieces, size_t stride, size_t j,
                            float strip[ATTEND_ROWS][ATTEND_STRIP]) {
    for (size_t i = 0; i < n_pieces; i++)
        for (size_t r = 0; r < pieces[i].rows; r++)
            vw_store(strip[pieces[i].lane + r], kv_load_wide(type, pieces[i].v, r * stride + j));
}

/* `width` wide vectors of columns, from j on, of out = out * keep + (scores . V) * add, or of scores . V; from `strip` if
 * there is one. */
HK_INLINE void value_strip(attend_queries *s, size_t q0, size_t n, size_t width, hk_type type, const attend_piece *pieces,
                           size_t n_pieces, size_t stride, size_t j, float (*strip)[ATTEND_STRIP]) {
    vw sum[ATTEND_MANY][ATTEND_WIDE];
    for (size_t q = 0; q < n; q++)
        for (size_t i = 0; i < width; i++) sum[q][i] = vw_zero();
    for (const attend_piece *piece = pieces; piece < pieces + n_pieces; piece++) {
        const float *scores = s->scores[q0] + piece->lane;
        size_t r = 0;
#define VALUE_ROW(r)                                                                                \
    {                                                                                               \
        vw values[ATTEND_WIDE];                                                                     \
        for (size_t i = 0; i < width; i++)                                                          \
            values[i] = strip ? vw_load(strip[piece->lane + (r)])                                   \
                              : kv_load_wide(type, piece->v, (r) * stride + j + i * VW_LANES);      \
        for (size_t q = 0; q < n; q++) {                                                            \
            const vw p = vw_set1(scores[q * ATTEND_SCORES + (r)]);                                  \
            for (size_t i = 0; i < width; i++) sum[q][i] = vw_fma(p, values[i], sum[q][i]);         \
        }                                                                                           \
    }
        for (; r + ATTEND_STEPS <= piece->rows; r += ATTEND_STEPS)
#pragma GCC unroll 4
            for (size_t k = 0; k < ATTEND_STEPS; k++) {
                if (!strip && k % 2 == 0) ask_ahead(&s->values, kv_bytes(type, 2 * width * VW_LANES));
                VALUE_ROW(r + k)
            }
        for (; r < piece->rows; r++) VALUE_ROW(r)
#undef VALUE_ROW
    }
    for (size_t q = 0; q < n; q++)
        for (size_t i = 0; i < width; i++) {
            float *out = s->out[q0 + q] + j + i * VW_LANES;
            vw_store(out, s->fresh ? sum[q][i] : added(vw_load(out), s->keep[q0 + q], sum[q][i], s->add[q0 + q]));
        }
}

/* The same for column j of all queries. */
HK_INLINE void value_column(attend_queries *s, hk_type type, const attend_piece *pieces, size_t n_pieces, size_t stride,
                            size_t j) {
    for (size_t q = 0; q < s->n; q++) {
        float sum = 0;
        for (const attend_piece *piece = pieces; piece < pieces + n_pieces; piece++)
            for (size_t r = 0; r < piece->rows; r++)
                sum = fmaf(s->scores[q][piece->lane + r], kv_value(type, piece->v, r * stride + j), sum);
        s->out[q][j] = s->fresh ? sum : fmaf(sum, s->add[q], s->out[q][j] * s->keep[q]);
    }
}

/* One tile: sequence rows from `at` on, in pieces, the first of them in lane `lane`. */
HK_INLINE void attend_tile(const hk_attend *a, hk_type type, int few, attend_queries *s, size_t at, size_t lane, size_t rows,
                           const attend_piece *pieces, size_t n_pieces) {
#define EACH_BLOCK(call)                          \
    for (size_t q = 0, n; q < s->n; q += n) {     \
        n = s->n - q;                             \
        switch (n) { /* constants, so that the sums live in registers */ \
        case 1: n = 1; call(1); break;            \
        case 2: n = 2; call(2); break;            \
        case 3: n = 3; call(3); break;            \
        case 4: n = 4; call(4); break;            \
        case 5: n = 5; call(5); break;            \
        default:                                  \
            if (!few && n >= ATTEND_MANY) {       \
                n = ATTEND_MANY; call(ATTEND_MANY); \
            } else {                              \
                n = ATTEND_BLOCK; call(ATTEND_BLOCK); \
            }                                     \
        }                                         \
    }
#define SCORE_ROWS(n) \
    for (size_t i = 0; i < n_pieces; i++) score_rows(s, n, type, pieces[i], a->k_stride, a->key_dim)
#define SCORES(n) score_strip(s, q, n, a->scratch, r, a->key_dim)
#define FEW_VALUES(n) value_strip(s, q, n, ATTEND_WIDE, type, pieces, n_pieces, a->v_stride, j, NULL)
#define VALUES(n) value_strip(s, q, n, 1, type, pieces, n_pieces, a->v_stride, j, strip)
    if (few) {
        EACH_BLOCK(SCORE_ROWS)
    } else {
        for (size_t r = lane / VF_LANES * VF_LANES; r < lane + rows; r += ATTEND_STRIP) {
            turn_keys(type, pieces, n_pieces, a->k_stride, a->key_dim, r, a->scratch);
            EACH_BLOCK(SCORES)
        }
    }
    for (size_t q = 0; q < s->n; q++) {
        /* the prefix is seen by all; of what follows, first .. end */
        const size_t first = a->first[s->token[q]], end = a->end[s->token[q]];
        const size_t from = at < a->prefix || first <= at ? 0 : first - at < rows ? first - at : rows;
        const size_t to = at < a->prefix || end >= at + rows ? rows : end > at ? end - at : 0;
        if (from < to) {
            softmax_tile(s, q, a->scale, lane, rows, lane + from, lane + to);
        } else {
            s->keep[q] = s->add[q] = 1;
            for (size_t r = lane; r < lane + rows; r++) s->scores[q][r] = 0;
        }
    }
    float strip[ATTEND_ROWS][ATTEND_STRIP];
    size_t j = 0;
    if (few)
        for (; j + ATTEND_WIDE * VW_LANES <= a->value_dim; j += ATTEND_WIDE * VW_LANES) { EACH_BLOCK(FEW_VALUES) }
    for (; j + ATTEND_STRIP <= a->value_dim; j += ATTEND_STRIP) {
        widen_values(type, pieces, n_pieces, a->v_stride, j, strip);
        EACH_BLOCK(VALUES)
    }
    for (; j < a->value_dim; j++) value_column(s, type, pieces, n_pieces, a->v_stride, j);
#undef EACH_BLOCK
#undef SCORE_ROWS
#undef SCORES
#undef FEW_VALUES
#undef VALUES
}

/* The pieces of the tile of rows at .. at + rows, for one kv head. */
HK_INLINE size_t tile_pieces(const hk_attend *a, hk_type type, size_t at, size_t rows, size_t head,
                             attend_piece pieces[ATTEND_PIECES]) {
    const size_t lane = tile_lane(a, at);
    size_t n = 0;
    for (size_t i = 0, begin = 0; i < a->n_runs && begin < at + rows; begin += a->runs[i++].rows) {
        const size_t end = begin + a->runs[i].rows, from = at > begin ? at : begin, to = at + rows < end ? at + rows : end;
        if (from >= to) continue;
        pieces[n++] = (attend_piece){
            .k = kv_at(type, a->runs[i].k, (from - begin) * a->k_stride + head * a->key_dim),
            .v = kv_at(type, a->runs[i].v, (from - begin) * a->v_stride + head * a->value_dim),
            .lane = lane + from - at,
            .rows = to - from,
        };
    }
    return n;
}

HK_INLINE void attend_type(const hk_attend *a, hk_type type, int few) {
    const size_t heads = a->kv_heads * a->group, all = a->tokens * a->group;
    attend_queries s;
    if (few) {
        for (size_t i = 0; i < a->now; i++) touch(a->soon[0][i]), touch(a->soon[1][i]);
        s.keys = (attend_ahead){.next = a->soon[0] + a->now, .end = a->soon[0] + a->n_soon};
        s.values = (attend_ahead){.next = a->soon[1] + a->now, .end = a->soon[1] + a->n_soon};
    }
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
                attend_tile(a, type, few, &s, at, tile_lane(a, at), rows, pieces, n_pieces);
            }
        }
    }
}

/* Functions, lest the compiler mix them. `few`: all queries of a head in one block. */
#define ATTEND(name, type, few) \
    static __attribute__((noinline)) void name(const hk_attend *a) { attend_type(a, type, few); }
ATTEND(attend_f32, HK_F32, 0)
ATTEND(attend_f32_few, HK_F32, 1)
ATTEND(attend_f16, HK_F16, 0)
ATTEND(attend_f16_few, HK_F16, 1)
ATTEND(attend_q8, HK_Q8_0, 0)
ATTEND(attend_q8_few, HK_Q8_0, 1)

static void attend(const hk_attend *a) {
    const int few = a->tokens * a->group <= ATTEND_BLOCK;
    if (a->type == HK_F16)
        (few ? attend_f16_few : attend_f16)(a);
    else if (a->type == HK_Q8_0)
        (few ? attend_q8_few : attend_q8)(a);
    else
        (few ? attend_f32_few : attend_f32)(a);
}

static void attend_merge(const float *max, const float *sum, size_t stride, const float *values, size_t values_stride,
                         size_t n, size_t value_dim, float *y) {
    float most = max[0], total = sum[0], keep = 0, add = 1;
    for (size_t i = 0; i < n; i++) {
        const float *v = values + i * values_stride;
        if (i > 0) {
            add_part(&most, max[i * stride], &keep, &add);
            total = total * keep + sum[i * stride] * add;
        }
        size_t j = 0;
        for (; j + VW_LANES <= value_dim; j += VW_LANES)
            vw_store(y + j, i == 0 ? vw_load(v + j) : added(vw_load(y + j), keep, vw_load(v + j), add));
        for (; j < value_dim; j++) y[j] = i == 0 ? v[j] : fmaf(v[j], add, y[j] * keep);
    }
    for (size_t j = 0; j < value_dim; j++) y[j] /= total;
}

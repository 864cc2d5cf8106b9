/* Attention: some tokens' queries over a run of rows, tile by tile, with a running maximum and sum, so that the scores
 * of a tile are all that is ever held. Where many queries share a head, the keys of a tile are turned, a row a lane; V
 * rows are read as they are. */

#define ATTEND_ROWS HK_ATTEND_ROWS /* of a tile */
#define ATTEND_QUERIES 40          /* whose scores of a tile are held at once */
#define ATTEND_BLOCK 6             /* queries whose sums live in registers, two vectors each */

/* p: values of K or V, in HK_Q8_0 from the beginning of a block on */
HK_INLINE vf kv_load(hk_type type, const void *p, size_t i) {
    if (type == HK_Q8_0) {
        const char *block = (const char *)p + q8_offset(i);
        return vf_mul(vf_set1(f16_scale(block)), vf_load_i8((const int8_t *)block + 2 + i % HK_BLOCK));
    }
    return type == HK_F16 ? vf_load_f16((const uint16_t *)p + i) : vf_load((const float *)p + i);
}

HK_INLINE float kv_value(hk_type type, const void *p, size_t i) {
    if (type == HK_Q8_0) return q8_value(p, i);
    return type == HK_F16 ? f16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

HK_INLINE const char *kv_at(hk_type type, const void *p, size_t i) {
    return (const char *)p + (type == HK_Q8_0 ? q8_offset(i) : i * (type == HK_F16 ? 2 : 4));
}

/* Asks for a head's row `r` of `rows` that are there. Heads lie side by side, so that the rows of one are far apart: the
 * CPU would not foresee it. */
HK_INLINE void ask_for_row(hk_type type, const void *p, size_t stride, size_t r, size_t rows, size_t dim) {
    if (r >= rows) return;
    const char *line = kv_at(type, p, r * stride), *end = kv_at(type, p, r * stride + dim);
    for (; line < end; line += 64) prefetch_soon(line);
}

/* Brings rows of all heads nearer, line after line, where nothing has asked for them yet. */
HK_INLINE void touch_rows(hk_type type, const void *p, size_t stride, size_t rows) {
    const char *end = kv_at(type, p, rows * stride);
    for (const char *line = p; line < end; line += 64) (void)*(const volatile char *)line;
}

/* Queries of one kv head. */
typedef struct attend_queries {
    size_t n;
    const float *q[ATTEND_QUERIES];      /* [key_dim] */
    float *out[ATTEND_QUERIES];          /* [value_dim] */
    float *max[ATTEND_QUERIES], *sum[ATTEND_QUERIES];
    size_t token[ATTEND_QUERIES];
    float rescale[ATTEND_QUERIES];       /* what the sums so far are worth under the new maximum */
    float scores[ATTEND_QUERIES][ATTEND_ROWS];
} attend_queries;

/* keys [rows, key_dim] to turned [key_dim, ATTEND_ROWS]; lanes without a row are zero */
HK_INLINE void turn_keys(hk_type type, const void *k, size_t stride, size_t rows, size_t key_dim, float *turned) {
    for (size_t r = 0; r < ATTEND_ROWS; r += VF_LANES) {
        size_t j = 0;
        for (; j + VF_LANES <= key_dim; j += VF_LANES) {
            vf square[VF_LANES];
            for (size_t i = 0; i < VF_LANES; i++)
                square[i] = r + i < rows ? kv_load(type, k, (r + i) * stride + j) : vf_zero();
            vf_transpose(square);
            for (size_t i = 0; i < VF_LANES; i++) vf_store(turned + (j + i) * ATTEND_ROWS + r, square[i]);
        }
        for (; j < key_dim; j++)
            for (size_t i = r; i < r + VF_LANES; i++)
                turned[j * ATTEND_ROWS + i] = i < rows ? kv_value(type, k, i * stride + j) : 0;
    }
}

HK_INLINE void score_block(attend_queries *s, size_t q0, size_t n, const float *turned, size_t rows, size_t key_dim,
                           float scale) {
    for (size_t r = 0; r < rows; r += 2 * VF_LANES) {
        vf sum[ATTEND_BLOCK][2];
        for (size_t q = 0; q < n; q++) sum[q][0] = sum[q][1] = vf_zero();
        const float *keys = turned + r;
        for (size_t j = 0; j < key_dim; j++, keys += ATTEND_ROWS) {
            const vf k0 = vf_load(keys), k1 = vf_load(keys + VF_LANES);
            for (size_t q = 0; q < n; q++) {
                const vf v = vf_set1(s->q[q0 + q][j]);
                sum[q][0] = vf_fma(v, k0, sum[q][0]);
                sum[q][1] = vf_fma(v, k1, sum[q][1]);
            }
        }
        for (size_t q = 0; q < n; q++) {
            vf_store(s->scores[q0 + q] + r, vf_mul(sum[q][0], vf_set1(scale)));
            vf_store(s->scores[q0 + q] + r + VF_LANES, vf_mul(sum[q][1], vf_set1(scale)));
        }
    }
}

/* The same for few queries, which would not repay the turning: the keys of two rows at a time meet all of them as they
 * lie, and the lanes are added up for eight rows at once. */
HK_INLINE void score_rows(attend_queries *s, size_t n, hk_type type, const void *k, size_t stride, size_t rows,
                          size_t key_dim, float scale, size_t ahead) {
    const size_t whole = key_dim - key_dim % VF_LANES;
    for (size_t r0 = 0; r0 < rows; r0 += VF_LANES) {
        vf lanes[ATTEND_BLOCK][VF_LANES];
        for (size_t r = 0; r < VF_LANES; r += 2) {
            const size_t row[2] = {r0 + r < rows ? r0 + r : rows - 1, r0 + r + 1 < rows ? r0 + r + 1 : rows - 1};
            vf sum[ATTEND_BLOCK][2];
            for (size_t q = 0; q < n; q++) sum[q][0] = sum[q][1] = vf_zero();
            for (size_t j = 0; j < whole; j += VF_LANES) {
                const vf k0 = kv_load(type, k, row[0] * stride + j), k1 = kv_load(type, k, row[1] * stride + j);
                for (size_t q = 0; q < n; q++) {
                    vf v = vf_load(s->q[q] + j);
                    OPAQUE(v); /* loaded once: the loads are as many as the sums allow */
                    sum[q][0] = vf_fma(v, k0, sum[q][0]);
                    sum[q][1] = vf_fma(v, k1, sum[q][1]);
                }
            }
            for (size_t i = 0; i < 2; i++) ask_for_row(type, k, stride, row[i] + ATTEND_ROWS, ahead, key_dim);
            for (size_t q = 0; q < n; q++) {
                lanes[q][r] = sum[q][0];
                lanes[q][r + 1] = sum[q][1];
            }
        }
        for (size_t q = 0; q < n; q++) {
            float *scores = s->scores[q];
            vf_store(scores + r0, vf_mul(vf_sums(lanes[q]), vf_set1(scale)));
            for (size_t j = whole; j < key_dim; j++)
                for (size_t r = r0; r < r0 + VF_LANES && r < rows; r++)
                    scores[r] += s->q[q][j] * kv_value(type, k, r * stride + j) * scale;
        }
    }
}

/* scores [rows] to exp(score - max) where begin <= row < end, to zero elsewhere; max and sum go on */
HK_INLINE void softmax_tile(attend_queries *s, size_t q, size_t rows, size_t begin, size_t end) {
    float *scores = s->scores[q], *max = s->max[q], *sum = s->sum[q];
    rows = (rows + VF_LANES - 1) / VF_LANES * VF_LANES;
    for (size_t r = 0; r < begin; r++) scores[r] = -INFINITY;
    for (size_t r = end; r < rows; r++) scores[r] = -INFINITY;
    vf top = vf_load(scores);
    for (size_t r = VF_LANES; r < rows; r += VF_LANES) top = vf_max(top, vf_load(scores + r));
    const float here = vf_top(top), most = here > *max ? here : *max;
    s->rescale[q] = 1;
    if (most != *max) { /* seldom, after the first tiles */
        float factor[VF_LANES];
        vf_store(factor, vf_exp(vf_set1(*max - most)));
        s->rescale[q] = *max == -INFINITY ? 0 : factor[0];
    }
    vf total = vf_zero();
    for (size_t r = 0; r < rows; r += VF_LANES) {
        const vf e = vf_exp(vf_sub(vf_load(scores + r), vf_set1(most)));
        vf_store(scores + r, e);
        total = vf_add(total, e);
    }
    if (begin > 0 || end < rows) {
        for (size_t r = 0; r < begin; r++) scores[r] = 0;
        for (size_t r = end; r < rows; r++) scores[r] = 0;
        total = vf_load(scores);
        for (size_t r = VF_LANES; r < rows; r += VF_LANES) total = vf_add(total, vf_load(scores + r));
    }
    *sum = *sum * s->rescale[q] + vf_sum(total);
    *max = most;
}

/* out = out * rescale + scores . V, two vectors of columns at a time */
HK_INLINE void value_block(attend_queries *s, size_t q0, size_t n, hk_type type, const void *v, size_t stride, size_t rows,
                           size_t value_dim, size_t ahead) {
    size_t j = 0;
    for (; j + 2 * VF_LANES <= value_dim; j += 2 * VF_LANES) {
        vf sum[ATTEND_BLOCK][2];
        for (size_t q = 0; q < n; q++) {
            const vf rescale = vf_set1(s->rescale[q0 + q]);
            sum[q][0] = vf_mul(vf_load(s->out[q0 + q] + j), rescale);
            sum[q][1] = vf_mul(vf_load(s->out[q0 + q] + j + VF_LANES), rescale);
        }
        for (size_t r = 0; r < rows; r++) {
            if (j % 32 == 0) ask_for_row(type, kv_at(type, v, j), stride, r + ATTEND_ROWS, ahead, 32);
            const vf v0 = kv_load(type, v, r * stride + j), v1 = kv_load(type, v, r * stride + j + VF_LANES);
            for (size_t q = 0; q < n; q++) {
                const vf p = vf_set1(s->scores[q0 + q][r]);
                sum[q][0] = vf_fma(p, v0, sum[q][0]);
                sum[q][1] = vf_fma(p, v1, sum[q][1]);
            }
        }
        for (size_t q = 0; q < n; q++) {
            vf_store(s->out[q0 + q] + j, sum[q][0]);
            vf_store(s->out[q0 + q] + j + VF_LANES, sum[q][1]);
        }
    }
    for (; j < value_dim; j++)
        for (size_t q = 0; q < n; q++) {
            float sum = s->out[q0 + q][j] * s->rescale[q0 + q];
            for (size_t r = 0; r < rows; r++) sum += s->scores[q0 + q][r] * kv_value(type, v, r * stride + j);
            s->out[q0 + q][j] = sum;
        }
}

/* One tile of rows: sequence rows at .. at + rows, at k and v for this head. Of the next tile, rows up to `ahead` are
 * asked for meanwhile. */
HK_INLINE void attend_tile(const hk_attend *a, hk_type type, int few, attend_queries *s, size_t at, size_t rows,
                           const void *k, const void *v, size_t ahead) {
#define EACH_BLOCK(call)                          \
    for (size_t q = 0, n; q < s->n; q += n) {     \
        n = s->n - q;                             \
        switch (n) { /* constants, so that the sums live in registers */ \
        case 1: n = 1; call(1); break;            \
        case 2: n = 2; call(2); break;            \
        case 3: n = 3; call(3); break;            \
        case 4: n = 4; call(4); break;            \
        case 5: n = 5; call(5); break;            \
        default: n = ATTEND_BLOCK; call(ATTEND_BLOCK); break; \
        }                                         \
    }
#define SCORE_ROWS(n) score_rows(s, n, type, k, a->k_stride, rows, a->key_dim, a->scale, ahead)
#define SCORES(n) score_block(s, q, n, a->scratch, rows, a->key_dim, a->scale)
#define VALUES(n) value_block(s, q, n, type, v, a->v_stride, rows, a->value_dim, ahead)
    if (few) {
        EACH_BLOCK(SCORE_ROWS)
    } else {
        turn_keys(type, k, a->k_stride, rows, a->key_dim, a->scratch);
        EACH_BLOCK(SCORES)
    }
    for (size_t q = 0; q < s->n; q++) {
        /* the prefix is seen by all; of what follows, first .. end */
        const size_t first = a->first[s->token[q]], end = a->end[s->token[q]];
        const size_t from = at < a->prefix || first <= at ? 0 : first - at < rows ? first - at : rows;
        const size_t to = at < a->prefix || end >= at + rows ? rows : end > at ? end - at : 0;
        if (from < to) {
            softmax_tile(s, q, rows, from, to);
        } else {
            s->rescale[q] = 1;
            for (size_t r = 0; r < rows; r++) s->scores[q][r] = 0;
        }
    }
    EACH_BLOCK(VALUES)
#undef EACH_BLOCK
#undef SCORE_ROWS
#undef SCORES
#undef VALUES
}

HK_INLINE void attend_type(const hk_attend *a, hk_type type, int few) {
    const size_t heads = a->kv_heads * a->group, all = a->tokens * a->group;
    for (size_t t = 0; t < a->tokens; t++)
        for (size_t h = 0; h < heads; h++) {
            a->max[t * heads + h] = -INFINITY;
            a->sum[t * heads + h] = 0;
            for (size_t j = 0; j < a->value_dim; j++) a->out[t * a->out_stride + h * a->value_dim + j] = 0;
        }
    attend_queries s;
    for (size_t begin = 0, i = 0; i < a->n_runs; begin += a->runs[i++].rows) {
        const hk_rows *run = &a->runs[i];
        size_t r = a->from > begin ? a->from - begin : 0;
        const size_t end = a->to - begin < run->rows ? a->to - begin : run->rows;
        while (a->to > begin && r < end) {
            size_t rows = end - r < ATTEND_ROWS ? end - r : ATTEND_ROWS;
            if (begin + r < a->prefix && begin + r + rows > a->prefix) rows = a->prefix - begin - r;
            if (few && begin + r == a->from && a->k_stride == a->kv_heads * a->key_dim) { /* all heads are asked for */
                touch_rows(type, kv_at(type, run->k, r * a->k_stride), a->k_stride, rows);
                touch_rows(type, kv_at(type, run->v, r * a->v_stride), a->v_stride, rows);
            }
            for (size_t head = 0; head < a->kv_heads; head++) {
                for (size_t q0 = 0; q0 < all; q0 += ATTEND_QUERIES) {
                    s.n = all - q0 < ATTEND_QUERIES ? all - q0 : ATTEND_QUERIES;
                    for (size_t q = 0; q < s.n; q++) {
                        const size_t t = (q0 + q) / a->group, h = head * a->group + (q0 + q) % a->group;
                        s.token[q] = t;
                        s.q[q] = a->q + t * a->q_stride + h * a->key_dim;
                        s.out[q] = a->out + t * a->out_stride + h * a->value_dim;
                        s.max[q] = &a->max[t * heads + h];
                        s.sum[q] = &a->sum[t * heads + h];
                    }
                    attend_tile(a, type, few, &s, begin + r, rows,
                                kv_at(type, run->k, r * a->k_stride + head * a->key_dim),
                                kv_at(type, run->v, r * a->v_stride + head * a->value_dim), few ? run->rows - r : 0);
                }
            }
            r += rows;
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
    float most = -INFINITY, total = 0;
    for (size_t i = 0; i < n; i++) most = max[i * stride] > most ? max[i * stride] : most;
    for (size_t i = 0; i < n; i++) {
        const float weight = expf(max[i * stride] - most), *v = values + i * values_stride;
        total += sum[i * stride] * weight;
        size_t j = 0;
        for (; j + VF_LANES <= value_dim; j += VF_LANES) {
            const vf part = vf_mul(vf_load(v + j), vf_set1(weight));
            vf_store(y + j, i == 0 ? part : vf_add(vf_load(y + j), part));
        }
        for (; j < value_dim; j++) y[j] = (i == 0 ? 0 : y[j]) + v[j] * weight;
    }
    for (size_t j = 0; j < value_dim; j++) y[j] /= total;
}

/* One token's attention over the runs of rows it may see, for the query heads that share a kv head: every K and V
 * row is read once for the whole group. Scores first, then softmax, then the weighted sum of V, row by row. */

HK_INLINE vf kv_load(hk_type type, const void *p, size_t i) {
    return type == HK_F16 ? vf_load_f16((const uint16_t *)p + i) : vf_load((const float *)p + i);
}

HK_INLINE float kv_value(hk_type type, const void *p, size_t i) {
    return type == HK_F16 ? f16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

/* four dot products at a time: scores[0..4] of one query against four rows */
HK_INLINE void score_rows(const hk_attend *a, hk_type type, const hk_rows *run, size_t r, size_t n, const float *q,
                              float *scores) {
    vf s[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    float tail[4] = {0, 0, 0, 0};
    size_t j = 0;
    for (; j + VF_LANES <= a->key_dim; j += VF_LANES) {
        const vf v = vf_load(q + j);
        for (size_t i = 0; i < n; i++) s[i] = vf_fma(v, kv_load(type, run->k, (r + i) * a->k_stride + j), s[i]);
    }
    for (; j < a->key_dim; j++)
        for (size_t i = 0; i < n; i++) tail[i] += q[j] * kv_value(type, run->k, (r + i) * a->k_stride + j);
    for (size_t i = 0; i < n; i++) scores[i] = (vf_sum(s[i]) + tail[i]) * a->scale;
}

/* scores [n] to exp(scores - max); returns their sum */
static float softmax_parts(float *scores, size_t n) {
    vf top = vf_set1(-INFINITY);
    float max = -INFINITY;
    size_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES) top = vf_max(top, vf_load(scores + i));
    max = vf_top(top);
    for (size_t j = i; j < n; j++) max = scores[j] > max ? scores[j] : max;
    const vf shift = vf_set1(max);
    vf sum = vf_zero();
    for (i = 0; i + VF_LANES <= n; i += VF_LANES) {
        const vf e = vf_exp(vf_sub(vf_load(scores + i), shift));
        vf_store(scores + i, e);
        sum = vf_add(sum, e);
    }
    float total = vf_sum(sum);
    if (i < n) {
        float last[VF_LANES];
        vf_store(last, vf_exp(vf_sub(vf_load_n(scores + i, n - i), shift)));
        for (size_t j = 0; i + j < n; j++) total += scores[i + j] = last[j];
    }
    return total;
}

/* Adds p[g][row] * V[row] for `rows` rows into out, in the order of the rows. Two vectors of V wide, so that a group
 * of up to five heads keeps its sums in registers. */
#define GROUP_MAX 5
HK_INLINE void add_values(const hk_attend *a, hk_type type, const hk_rows *run, size_t first, size_t rows,
                              size_t group, const float *scores, size_t all, float *out) {
    size_t j = 0;
    for (; j + 2 * VF_LANES <= a->value_dim; j += 2 * VF_LANES) {
        vf s0[GROUP_MAX], s1[GROUP_MAX];
        for (size_t g = 0; g < group; g++) {
            s0[g] = vf_load(out + g * a->value_dim + j);
            s1[g] = vf_load(out + g * a->value_dim + j + VF_LANES);
        }
        for (size_t r = 0; r < rows; r++) {
            const vf v0 = kv_load(type, run->v, (first + r) * a->v_stride + j);
            const vf v1 = kv_load(type, run->v, (first + r) * a->v_stride + j + VF_LANES);
            for (size_t g = 0; g < group; g++) {
                const vf p = vf_set1(scores[g * all + r]);
                s0[g] = vf_fma(p, v0, s0[g]);
                s1[g] = vf_fma(p, v1, s1[g]);
            }
        }
        for (size_t g = 0; g < group; g++) {
            vf_store(out + g * a->value_dim + j, s0[g]);
            vf_store(out + g * a->value_dim + j + VF_LANES, s1[g]);
        }
    }
    for (; j < a->value_dim; j++)
        for (size_t g = 0; g < group; g++)
            for (size_t r = 0; r < rows; r++)
                out[g * a->value_dim + j] += scores[g * all + r] * kv_value(type, run->v, (first + r) * a->v_stride + j);
}

HK_INLINE void add_values_group(const hk_attend *a, hk_type type, const hk_rows *run, size_t first, size_t rows,
                                    size_t group, const float *scores, size_t all, float *out) {
    switch (group) { /* constants, so that the sums live in registers */
    case 5: add_values(a, type, run, first, rows, 5, scores, all, out); break;
    case 4: add_values(a, type, run, first, rows, 4, scores, all, out); break;
    case 3: add_values(a, type, run, first, rows, 3, scores, all, out); break;
    case 2: add_values(a, type, run, first, rows, 2, scores, all, out); break;
    default: add_values(a, type, run, first, rows, 1, scores, all, out); break;
    }
}

#define ROW_TILE 64 /* rows of V that stay in the first-level cache while the columns are walked */

HK_INLINE void attend_type(const hk_attend *a, hk_type type) {
    size_t all = 0;
    for (size_t i = 0; i < a->n_runs; i++) all += a->runs[i].rows;

    size_t n = 0;
    for (size_t i = 0; i < a->n_runs; i++) {
        const hk_rows *run = &a->runs[i];
        size_t r = 0;
        for (; r + 4 <= run->rows; r += 4)
            for (size_t g = 0; g < a->group; g++)
                score_rows(a, type, run, r, 4, a->q + g * a->key_dim, a->scores + g * all + n + r);
        for (; r < run->rows; r++)
            for (size_t g = 0; g < a->group; g++)
                score_rows(a, type, run, r, 1, a->q + g * a->key_dim, a->scores + g * all + n + r);
        n += run->rows;
    }

    for (size_t g0 = 0; g0 < a->group; g0 += GROUP_MAX) {
        const size_t group = a->group - g0 < GROUP_MAX ? a->group - g0 : GROUP_MAX;
        float *scores = a->scores + g0 * all, *out = a->out + g0 * a->value_dim;
        float sum[GROUP_MAX];
        for (size_t g = 0; g < group; g++) sum[g] = softmax_parts(scores + g * all, all);
        for (size_t j = 0; j < group * a->value_dim; j++) out[j] = 0;
        n = 0;
        for (size_t i = 0; i < a->n_runs; i++)
            for (size_t first = 0; first < a->runs[i].rows;) {
                const size_t left = a->runs[i].rows - first, rows = left < ROW_TILE ? left : ROW_TILE;
                add_values_group(a, type, &a->runs[i], first, rows, group, scores + n, all, out);
                first += rows;
                n += rows;
            }
        for (size_t g = 0; g < group; g++)
            for (size_t j = 0; j < a->value_dim; j++) out[g * a->value_dim + j] /= sum[g];
    }
}

static void attend(const hk_attend *a) {
    if (a->type == HK_F16)
        attend_type(a, HK_F16);
    else
        attend_type(a, HK_F32);
}

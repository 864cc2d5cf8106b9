/* Shared by prefill and decode attention: conversion of K and V, the pieces of a tile, online softmax (FlashAttention,
 * arXiv 2205.14135), and the combination of partial results.
 *
 * The output of a query has the same bits for any number of queries, in prefill and decode: products with a key are
 * accumulated in eight sums in memory order, which are reduced like in `vf_sums`; a tile's rows have fixed lanes,
 * visible or not, and are added in order, and so are the tiles.
 *
 * Requires: tiles.h, wide-inl.h, math-inl.h. */
#ifndef HYMBA_ATTENTION_INL_H
#define HYMBA_ATTENTION_INL_H

#define TILE_PIECES 4 /* maximum number of spans with rows in a tile */

/* VF_LANES values of K or V starting at i; for HK_Q8_0, p is the start of a block. */
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

/* The rows of a tile that belong to one span and one KV head, in lanes starting at `lane`. */
typedef struct tile_piece {
    const void *k, *v;
    size_t k_head_stride, v_head_stride; /* distance to the next head, in values */
    size_t lane, rows;
} tile_piece;

/* Returns how many pieces the tile has. */
HK_INLINE size_t tile_pieces(const hk_kv_sequence *kv, hk_type type, kv_tile tile, size_t head,
                             tile_piece pieces[TILE_PIECES]) {
    const size_t at = tile.at, tile_end = tile.at + tile.rows;
    size_t n = 0;
    for (size_t i = 0, begin = 0; i < kv->n_spans && begin < tile_end; begin += kv->spans[i++].rows) {
        const hk_kv_span *span = kv->spans + i;
        const size_t end = begin + span->rows, from = at > begin ? at : begin, to = tile_end < end ? tile_end : end;
        if (from >= to) continue;
        pieces[n++] = (tile_piece){
            .k = kv_at(type, span->k, head * span->k_head_stride + (from - begin) * kv->key_dim),
            .v = kv_at(type, span->v, head * span->v_head_stride + (from - begin) * kv->value_dim),
            .k_head_stride = span->k_head_stride,
            .v_head_stride = span->v_head_stride,
            .lane = tile.lane + from - at,
            .rows = to - from,
        };
    }
    return n;
}

/* Online softmax: updates `max` with `tile_max`, and computes the factors that rescale the previous sums and the
 * tile's. */
HK_INLINE void online_softmax_rescale(float *max, float tile_max, float *old_scale, float *new_scale) {
    const float before = *max;
    *max = tile_max > before ? tile_max : before;
    *old_scale = before == -INFINITY ? 0 : 1;
    *new_scale = 1;
    if (before == tile_max || before == -INFINITY) return;
    float factor[VF_LANES]; /* for the smaller; NaN is preserved */
    vf_store(factor, vf_exp(vf_set1(tile_max > before ? before - tile_max : tile_max - before)));
    *(tile_max > before ? old_scale : new_scale) = factor[0];
}

HK_INLINE vw rescaled_sum(vw out, float old_scale, vw tile, float new_scale) {
    return vw_fma(tile, vw_set1(new_scale), vw_mul(out, vw_set1(old_scale)));
}

/* Converts a tile's products q.K to exp(scale * product - their maximum), and to 0 in lanes that are not visible to the
 * token. Updates max and sum, and returns the factors for rescaling. */
HK_INLINE void softmax_tile(float scale, kv_tile tile, lane_range seen, float *scores, float *max, float *sum,
                            float *old_scale, float *new_scale) {
    const size_t lane = tile.lane, rows = tile.rows, begin = seen.begin, stop = seen.end;
    if (begin >= stop) {
        *old_scale = *new_scale = 1;
        for (size_t r = lane; r < lane + rows; r++) scores[r] = 0;
        return;
    }
    const size_t from = begin / VW_LANES * VW_LANES, to = (stop + VW_LANES - 1) / VW_LANES * VW_LANES;
    for (size_t r = from; r < begin; r++) scores[r] = -INFINITY;
    for (size_t r = stop; r < to; r++) scores[r] = -INFINITY;
    const vw factor = vw_set1(scale);
    vw top = vw_set1(-INFINITY);
    for (size_t r = from; r < to; r += VW_LANES) top = vw_max(top, vw_mul(vw_load(scores + r), factor));
    const float tile_max = vf_reduce_max(vf_max(vw_low(top), vw_high(top)));
    vw total = vw_zero();
    for (size_t r = from; r < to; r += VW_LANES) {
        const vw e = vw_exp(vw_fma(vw_load(scores + r), factor, vw_set1(-tile_max)));
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
    online_softmax_rescale(max, tile_max, old_scale, new_scale);
    *sum = *sum * *old_scale + vf_reduce_sum(vf_add(vw_low(total), vw_high(total))) * *new_scale;
}

/* VF_LANES heads at most. */
HK_INLINE void combine_heads(const float *max, const float *sum, size_t stride, const float *values,
                             size_t values_stride, size_t n, size_t heads, size_t value_dim, float *y) {
    float top[VF_LANES], total[VF_LANES], old_scale[VF_LANES], new_scale[VF_LANES];
    for (size_t h = 0; h < heads; h++) top[h] = max[h], total[h] = sum[h];
    for (size_t i = 0; i < n; i++) {
        if (i > 0)
            for (size_t h = 0; h < heads; h++) {
                online_softmax_rescale(&top[h], max[i * stride + h], &old_scale[h], &new_scale[h]);
                total[h] = total[h] * old_scale[h] + sum[i * stride + h] * new_scale[h];
            }
        for (size_t h = 0; h < heads; h++) {
            const float *v = values + i * values_stride + h * value_dim;
            float *out = y + h * value_dim;
            size_t j = 0;
            for (; j + VW_LANES <= value_dim; j += VW_LANES)
                vw_store(out + j, i == 0 ? vw_load(v + j)
                                         : rescaled_sum(vw_load(out + j), old_scale[h], vw_load(v + j), new_scale[h]));
            for (; j < value_dim; j++) out[j] = i == 0 ? v[j] : fmaf(v[j], new_scale[h], out[j] * old_scale[h]);
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

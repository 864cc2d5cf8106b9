/* The rows that attention reads: a value of one, and where tiles of them begin and end. */
#ifndef HYMBA_TILES_H
#define HYMBA_TILES_H

#include "half.h"
#include "hymba_kernels.h"

/* value i of K or V; with HK_Q8_0, p is the beginning of a block */
static inline float kv_value(hk_type type, const void *p, size_t i) {
    if (type == HK_Q8_0) return q8_value(p, i);
    return type == HK_F16 ? f16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

/* bytes of n values, which are whole blocks if there are blocks */
static inline size_t kv_bytes(hk_type type, size_t n) {
    return type == HK_Q8_0 ? q8_offset(n) : n * (type == HK_F16 ? 2 : 4);
}

/* where the values from i on are, which begin a block if there are blocks */
static inline const char *kv_at(hk_type type, const void *p, size_t i) { return (const char *)p + kv_bytes(type, i); }

/* the place in its tile of row `at` of the sequence */
static inline size_t tile_lane(const hk_attend *a, size_t at) {
    return (at < a->prefix ? at : at - a->prefix + a->tile_offset) % HK_ATTEND_ROWS;
}

/* how many rows the tile has from there on, of those that the call looks at */
static inline size_t tile_rows(const hk_attend *a, size_t at) {
    const size_t room = HK_ATTEND_ROWS - tile_lane(a, at),
                 end = at < a->prefix && a->prefix < a->to ? a->prefix : a->to;
    return end - at < room ? end - at : room;
}

#endif

/* The rows that attention reads: access to single values, and the boundaries of tiles. */
#ifndef HYMBA_TILES_H
#define HYMBA_TILES_H

#include "half.h"
#include "hymba_kernels.h"

/* Returns value i of K or V; for HK_Q8_0, p is the start of a block. */
static inline float kv_value(hk_type type, const void *p, size_t i) {
    if (type == HK_Q8_0) return q8_value(p, i);
    return type == HK_F16 ? f16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

/* Returns the size of n values in bytes; whole blocks for block types. */
static inline size_t kv_bytes(hk_type type, size_t n) {
    return type == HK_Q8_0 ? q8_offset(n) : n * (type == HK_F16 ? 2 : 4);
}

/* Returns the address of value i, which is the first one of a block for block types. */
static inline const char *kv_at(hk_type type, const void *p, size_t i) { return (const char *)p + kv_bytes(type, i); }

/* A tile: rows `at` .. `at + rows` of the sequence, row `at` in lane `lane`. Rows have fixed lanes, visible or not. */
typedef struct kv_tile {
    size_t at, rows, lane;
} kv_tile;

/* Returns the tile that starts at row `at`, limited to rows below `to`. */
static inline kv_tile tile_at(const hk_kv_sequence *kv, size_t at, size_t to) {
    const size_t lane = (at < kv->prefix ? at : at - kv->prefix + kv->tile_offset) % HK_TILE_ROWS,
                 room = HK_TILE_ROWS - lane, end = at < kv->prefix && kv->prefix < to ? kv->prefix : to;
    return (kv_tile){at, end - at < room ? end - at : room, lane};
}

/* Lanes begin .. end of a tile; none if end <= begin. */
typedef struct lane_range {
    size_t begin, end;
} lane_range;

/* Returns the lanes visible to a token that sees the prefix and rows first .. end. */
static inline lane_range tile_seen(const hk_kv_sequence *kv, kv_tile tile, size_t first, size_t end) {
    const size_t at = tile.at, rows = tile.rows;
    if (at < kv->prefix) return (lane_range){tile.lane, tile.lane + rows};
    return (lane_range){tile.lane + (first <= at         ? 0
                                     : first - at < rows ? first - at
                                                         : rows),
                        tile.lane + (end >= at + rows ? rows
                                     : end > at       ? end - at
                                                      : 0)};
}

#endif

/* Where attention's tiles of rows begin and end. */
#ifndef HYMBA_TILES_H
#define HYMBA_TILES_H

#include "hymba_kernels.h"

/* the place in its tile of row `at` of the sequence */
static inline size_t tile_lane(const hk_attend *a, size_t at) {
    return (at < a->prefix ? at : at - a->prefix + a->phase) % HK_ATTEND_ROWS;
}

/* how many rows the tile has from there on, of those that the call looks at */
static inline size_t tile_rows(const hk_attend *a, size_t at) {
    const size_t room = HK_ATTEND_ROWS - tile_lane(a, at), end = at < a->prefix && a->prefix < a->to ? a->prefix : a->to;
    return end - at < room ? end - at : room;
}

#endif

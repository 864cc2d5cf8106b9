// Matrix products (GEMM): tiles of 64 rows and 32 tokens. 32 columns at a time are decoded once for all tokens of the
// tile and multiplied as matrices of 8 by 8.

constexpr constant uint TILE_ROWS = 64;
constexpr constant uint TILE_TOKENS = 32;
constexpr constant uint TILE_COLS = 32;
constexpr constant uint PITCH = 36; // row stride of a tile, so that a column is spread over different banks

template <uint format>
inline void load_weights(threadgroup float *tile, device const uchar *w, uint rows, uint cols, uint first, uint col,
                  uint tid, uint threads) {
    for (uint i = tid; i < TILE_ROWS * (TILE_COLS / 4); i += threads) {
        // eight adjacent threads load eight rows: one word each if rows are interleaved
        const uint row = i / 64 * 8 + i % 8, c = i / 8 % 8 * 4;
        const float4 v = first + row < rows ? weights4<format>(w, cols, first + row, col + c) : float4(0.0f);
        threadgroup float *to = tile + row * PITCH + c;
        to[0] = v.x;
        to[1] = v.y;
        to[2] = v.z;
        to[3] = v.w;
    }
}

/// y[t] = or += W x[t]: a threadgroup of four simdgroups per tile, each with 32 rows and 16 tokens of it. `shared`
/// holds (TILE_ROWS + TILE_TOKENS) * PITCH values. Uses FORMAT, ALIGNED.
kernel void matmul(device const uchar *w [[buffer(0)]], device const float *x [[buffer(1)]],
                   device float *y [[buffer(2)]], constant ProductArgs &a [[buffer(3)]],
                   threadgroup float *shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                   uint tid [[thread_index_in_threadgroup]], uint simd [[simdgroup_index_in_threadgroup]],
                   uint simds [[simdgroups_per_threadgroup]]) {
    const uint threads = 32 * simds;
    const uint first_row = group.x * TILE_ROWS, first_token = group.y * TILE_TOKENS;
    threadgroup float *tile_w = shared, *tile_x = shared + TILE_ROWS * PITCH;
    const uint rows_from = simd % 2 * 32, tokens_from = simd / 2 * 16;
    simdgroup_float8x8 sums[2][4]; // [tokens][rows], in units of eight
    for (uint i = 0; i < 2; i++) {
        for (uint j = 0; j < 4; j++) sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    for (uint col = 0; col < a.cols; col += TILE_COLS) {
        switch (FORMAT) {
            ROW_FORMATS(load_weights<format>(tile_w, w, a.rows, a.cols, first_row, col, tid, threads))
            X8_FORMATS(load_weights<format>(tile_w, w, a.rows, a.cols, first_row, col, tid, threads))
        }
        for (uint i = tid; i < TILE_TOKENS * (TILE_COLS / 4); i += threads) {
            const uint token = i / 8, c = i % 8 * 4;
            const float4 v = first_token + token < a.tokens
                                 ? load4(x + ulong(first_token + token) * a.x_stride, col + c, a.cols)
                                 : float4(0.0f);
            threadgroup float *to = tile_x + token * PITCH + c;
            to[0] = v.x;
            to[1] = v.y;
            to[2] = v.z;
            to[3] = v.w;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint k = 0; k < TILE_COLS; k += 8) {
            simdgroup_float8x8 in[2], row[4];
            for (uint i = 0; i < 2; i++) simdgroup_load(in[i], tile_x + (tokens_from + 8 * i) * PITCH + k, PITCH);
            for (uint j = 0; j < 4; j++) {
                simdgroup_load(row[j], tile_w + (rows_from + 8 * j) * PITCH + k, PITCH, ulong2(0, 0), true);
            }
            for (uint i = 0; i < 2; i++) {
                for (uint j = 0; j < 4; j++) simdgroup_multiply_accumulate(sums[i][j], in[i], row[j], sums[i][j]);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // through threadgroup memory, since the tile may extend beyond the last row and token
    threadgroup float *tile = shared; // [TILE_TOKENS][TILE_ROWS]
    for (uint i = 0; i < 2; i++) {
        for (uint j = 0; j < 4; j++) {
            simdgroup_store(sums[i][j], tile + (tokens_from + 8 * i) * TILE_ROWS + rows_from + 8 * j, TILE_ROWS);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < TILE_TOKENS * TILE_ROWS; i += threads) {
        const uint token = first_token + i / TILE_ROWS, row = first_row + i % TILE_ROWS;
        if (token < a.tokens && row < a.rows) {
            device float *out = y + ulong(token) * a.y_stride + row;
            *out = a.accumulate != 0 ? *out + tile[i] : tile[i];
        }
    }
}

// Products with one or a few tokens (GEMV): bandwidth-bound, so weights are read once for TOGETHER tokens. The order of
// a token's sums does not depend on other tokens.

constexpr constant uint TOGETHER = 8;

struct ProductArgs {
    uint rows, cols, tokens, x_stride, y_stride, accumulate;
};

/// The scales of rows `first` .. first + 3 of eight interleaved ones.
template <uint format>
inline float4 scales4(device const uchar *block, uint first) {
    if (plain(format) == MXFP4) {
        const uchar4 e = *(device const uchar4 *)(block + first);
        return float4(power_of_two(e.x), power_of_two(e.y), power_of_two(e.z), power_of_two(e.w));
    }
    return float4(*(device const half4 *)(block + 2 * first));
}

/// Sixteen bytes of a block; those of MXFP4 are only aligned to 8.
template <uint format>
inline uint4 words4(device const uchar *p) {
    if (plain(format) != MXFP4) return *(device const uint4 *)p;
    const uint2 low = *(device const uint2 *)p, high = *(device const uint2 *)(p + 8);
    return uint4(low.x, low.y, high.x, high.y);
}

/// The levels of a chunk of a row: a word of codes has four columns, or two times four columns in its nibbles.
struct Levels {
    float4 low, high;
};
template <uint format>
inline Levels chunk_levels(uint word, uint fifth, uint c) {
    Levels levels;
    levels.low = levels4<format>(codes4<format>(word, fifth, c));
    levels.high = levels.low;
    if (plain(format) != Q8_0) levels.high = levels4<format>(codes4<format>(word, fifth, c + 4));
    return levels;
}

/// Their contribution to the row's product.
template <uint format>
inline float chunk_dot(Levels levels, float4 low, float4 high) {
    const float sum = dot(levels.low, low);
    return plain(format) == Q8_0 ? sum : sum + dot(levels.high, high);
}

/// A lane's share of the products of eight interleaved rows with `tokens` rows of x: rows 4 * (lane % 2) .. + 3. Each
/// lane reads sixteen bytes of weights at once, adjacent to those of the other lanes.
template <uint format>
inline void interleaved_dots(device const uchar *w, uint group, device const float *x, uint x_stride, uint tokens,
                             uint blocks, uint part, uint parts, uint lane, thread float4 *sums) {
    const uint bytes = 8 * block_bytes(format);
    const uint lanes = plain(format) == Q8_0 ? 16 : 8; // sharing a block of eight rows and 32 columns
    const uint piece = lane % lanes, c = piece / 2, first = piece % 2 * 4;
    for (uint b = part * (32 / lanes) + lane / lanes; b < blocks; b += parts * (32 / lanes)) {
        device const uchar *block = w + (group * ulong(blocks) + b) * bytes;
        const float4 d = scales4<format>(block, first);
        const uint4 q = words4<format>(block + 8 * codes_at(format) + 16 * piece);
        uint4 fifth = q;
        if (has_fifth(format)) fifth = words4<format>(block + 8 * fifth_at(format) + 4 * first);
        float4 shift = d;
        if (is_shifted(format)) shift = has_min(format) ? scales4<format>(block + 16, first) : -zero_code(format) * d;
        const Levels l0 = chunk_levels<format>(q.x, fifth.x, c), l1 = chunk_levels<format>(q.y, fifth.y, c);
        const Levels l2 = chunk_levels<format>(q.z, fifth.z, c), l3 = chunk_levels<format>(q.w, fifth.w, c);
        for (uint t = 0; t < TOGETHER; t++) { // constant bounds, so that sums are in registers
            if (t >= tokens) continue;
            device const float *in = x + ulong(t) * x_stride + 32 * b + 4 * c;
            const float4 low = *(device const float4 *)in;
            float4 high = low;
            if (plain(format) != Q8_0) high = *(device const float4 *)(in + 16);
            sums[t] += d * float4(chunk_dot<format>(l0, low, high), chunk_dot<format>(l1, low, high),
                                  chunk_dot<format>(l2, low, high), chunk_dot<format>(l3, low, high));
            if (is_shifted(format)) sums[t] += (dot(low, float4(1.0f)) + dot(high, float4(1.0f))) * shift;
        }
    }
}

/// y[t] = or += W x[t], W with eight interleaved rows: one threadgroup for eight rows and TOGETHER tokens, whose
/// simdgroups share the columns. Rows of x start at multiples of 4. `shared` holds eight values per simdgroup and
/// token. Uses FORMAT.
kernel void matvec_x8(device const uchar *w [[buffer(0)]], device const float *x [[buffer(1)]],
                      device float *y [[buffer(2)]], constant ProductArgs &a [[buffer(3)]],
                      threadgroup float *shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                      uint tid [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                      uint simd [[simdgroup_index_in_threadgroup]], uint simds [[simdgroups_per_threadgroup]]) {
    const uint first = group.y * TOGETHER, tokens = min(TOGETHER, a.tokens - first);
    device const float *in = x + ulong(first) * a.x_stride;
    float4 sums[TOGETHER];
    for (uint t = 0; t < TOGETHER; t++) sums[t] = float4(0.0f);
    switch (FORMAT) {
        X8_FORMATS(interleaved_dots<format>(w, group.x, in, a.x_stride, tokens, a.cols / 32, simd, simds, lane, sums))
    }
    for (uint t = 0; t < TOGETHER; t++) {
        if (t >= tokens) continue; // uniform for all lanes
        float4 sum = sums[t];
        for (ushort step = 2; step < 32; step *= 2) {
            sum += float4(simd_shuffle_xor(sum.x, step), simd_shuffle_xor(sum.y, step),
                          simd_shuffle_xor(sum.z, step), simd_shuffle_xor(sum.w, step));
        }
        if (lane < 2) {
            threadgroup float *mine = shared + 8 * (t * simds + simd) + 4 * lane;
            mine[0] = sum.x;
            mine[1] = sum.y;
            mine[2] = sum.z;
            mine[3] = sum.w;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < 8 * tokens; i += 32 * simds) {
        const uint t = i / 8, row = 8 * group.x + i % 8;
        if (row >= a.rows) continue;
        float sum = 0.0f;
        for (uint s = 0; s < simds; s++) sum += shared[8 * (t * simds + s) + i % 8];
        device float *out = y + ulong(first + t) * a.y_stride + row;
        *out = a.accumulate != 0 ? *out + sum : sum;
    }
}

/// Rows per simdgroup, which share a read of x.
constexpr constant uint ROWS_AT_ONCE = 4;

/// The contribution of half `h` of a row's block `b`; x: the corresponding activations, `sum` their sum.
template <uint format>
inline float half_block_dot(device const uchar *w, uint blocks, uint row, uint b, uint h, thread const float4 *x, float sum) {
    const uint words = plain(format) == Q8_0 ? 4 : 2;
    device const uchar *block = w + (row * ulong(blocks) + b) * block_bytes(format);
    device const half *halves = (device const half *)block;
    const float d = format == MXFP4 ? power_of_two(block[0]) : float(halves[0]);
    const uint fifth = has_fifth(format) ? word_at<format>(block + fifth_at(format)) : 0;
    float dots = 0.0f;
    for (uint i = 0; i < words; i++) {
        const uint c = words * h + i, word = word_at<format>(block + codes_at(format) + 4 * c);
        dots += chunk_dot<format>(chunk_levels<format>(word, fifth, c), x[i], x[(words + i) % 4]);
    }
    if (has_min(format)) return d * dots + float(halves[1]) * sum;
    return d * (dots - zero_code(format) * sum);
}

/// A lane's share of the products of rows row .. row + 3 with `tokens` rows of x. Block formats are processed in halves
/// of blocks.
template <uint format>
inline void row_dots(device const uchar *w, device const float *x, uint x_stride, uint tokens, uint rows, uint cols,
                     uint row, uint lane, thread float4 *sums) {
    const uint last = rows - 1; // repeated instead of reading beyond it
    const uint rest[3] = {min(row + 1, last), min(row + 2, last), min(row + 3, last)};
    if (format < Q8_0) {
        for (uint col = 4 * lane; col < cols; col += 128) {
            const float4 w0 = weights4<format>(w, cols, row, col), w1 = weights4<format>(w, cols, rest[0], col);
            const float4 w2 = weights4<format>(w, cols, rest[1], col), w3 = weights4<format>(w, cols, rest[2], col);
            for (uint t = 0; t < TOGETHER; t++) { // constant bounds, so that sums are in registers
                if (t >= tokens) continue;
                const float4 in = load4(x + ulong(t) * x_stride, col, cols);
                sums[t] += float4(dot(w0, in), dot(w1, in), dot(w2, in), dot(w3, in));
            }
        }
        return;
    }
    const uint h = lane % 2, blocks = cols / 32;
    for (uint b = lane / 2; b < blocks; b += 16) {
        for (uint t = 0; t < TOGETHER; t++) {
            if (t >= tokens) continue;
            float4 in[4]; // sixteen columns, or eight of low nibbles and eight of high ones
            for (uint i = 0; i < 4; i++) {
                const uint c = plain(format) == Q8_0 ? 4 * h + i : 2 * h + i % 2 + i / 2 * 4;
                in[i] = load4(x + ulong(t) * x_stride, 32 * b + 4 * c, cols);
            }
            const float sum = is_shifted(format) ? dot(in[0] + in[1] + in[2] + in[3], float4(1.0f)) : 0.0f;
            sums[t] += float4(half_block_dot<format>(w, blocks, row, b, h, in, sum),
                              half_block_dot<format>(w, blocks, rest[0], b, h, in, sum),
                              half_block_dot<format>(w, blocks, rest[1], b, h, in, sum),
                              half_block_dot<format>(w, blocks, rest[2], b, h, in, sum));
        }
    }
}

/// y[t] = or += W x[t], W with consecutive rows: one simdgroup for ROWS_AT_ONCE rows and TOGETHER tokens. Uses FORMAT,
/// ALIGNED.
kernel void matvec_rows(device const uchar *w [[buffer(0)]], device const float *x [[buffer(1)]],
                        device float *y [[buffer(2)]], constant ProductArgs &a [[buffer(3)]],
                        uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                        uint simd [[simdgroup_index_in_threadgroup]], uint simds [[simdgroups_per_threadgroup]]) {
    const uint row = (group.x * simds + simd) * ROWS_AT_ONCE;
    if (row >= a.rows) return; // uniform for a simdgroup
    const uint first = group.y * TOGETHER, tokens = min(TOGETHER, a.tokens - first);
    device const float *in = x + ulong(first) * a.x_stride;
    float4 sums[TOGETHER];
    for (uint t = 0; t < TOGETHER; t++) sums[t] = float4(0.0f);
    switch (FORMAT) {
        ROW_FORMATS(row_dots<format>(w, in, a.x_stride, tokens, a.rows, a.cols, row, lane, sums))
    }
    for (uint t = 0; t < TOGETHER; t++) {
        if (t >= tokens) continue; // uniform for all lanes
        const float4 all = float4(simd_sum(sums[t].x), simd_sum(sums[t].y), simd_sum(sums[t].z), simd_sum(sums[t].w));
        if (lane < ROWS_AT_ONCE && row + lane < a.rows) {
            const float sum = lane == 0 ? all.x : lane == 1 ? all.y : lane == 2 ? all.z : all.w;
            device float *out = y + ulong(first + t) * a.y_stride + row + lane;
            *out = a.accumulate != 0 ? *out + sum : sum;
        }
    }
}

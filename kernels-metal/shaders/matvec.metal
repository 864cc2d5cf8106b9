// Products with one token, or with each of a few: bound by reading the weights, each of which is read once.

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

/// Sixteen bytes of a block; those of MXFP4 begin at multiples of 8 only.
template <uint format>
inline uint4 words4(device const uchar *p) {
    if (plain(format) != MXFP4) return *(device const uint4 *)p;
    const uint2 low = *(device const uint2 *)p, high = *(device const uint2 *)(p + 8);
    return uint4(low.x, low.y, high.x, high.y);
}

/// What a row's codes of a chunk add to its product: a word of them is of four columns, or of these and four others.
template <uint format>
inline float chunk_dot(uint word, uint fifth, uint c, float4 low, float4 high) {
    const float sum = dot(levels4<format>(codes4<format>(word, fifth, c)), low);
    return plain(format) == Q8_0 ? sum : sum + dot(levels4<format>(codes4<format>(word, fifth, c + 4)), high);
}

/// The shares of a lane in the products of eight interleaved rows with x: rows 4 * (lane % 2) .. + 3. Sixteen bytes of
/// weights a lane are read at once, those of a simdgroup lying side by side.
template <uint format>
inline float4 interleaved_dots(device const uchar *w, uint group, device const float *x, uint blocks, uint part,
                               uint parts, uint lane) {
    const uint bytes = 8 * block_bytes(format);
    const uint lanes = plain(format) == Q8_0 ? 16 : 8; // that share a block of eight rows and 32 columns
    const uint piece = lane % lanes, c = piece / 2, first = piece % 2 * 4;
    float4 sums = float4(0.0f);
    for (uint b = part * (32 / lanes) + lane / lanes; b < blocks; b += parts * (32 / lanes)) {
        device const uchar *block = w + (group * ulong(blocks) + b) * bytes;
        const float4 d = scales4<format>(block, first);
        const uint4 q = words4<format>(block + 8 * codes_at(format) + 16 * piece);
        uint4 fifth = q;
        if (has_fifth(format)) fifth = words4<format>(block + 8 * fifth_at(format) + 4 * first);
        const float4 low = *(device const float4 *)(x + 32 * b + 4 * c);
        float4 high = low;
        if (plain(format) != Q8_0) high = *(device const float4 *)(x + 32 * b + 16 + 4 * c);
        sums += d * float4(chunk_dot<format>(q.x, fifth.x, c, low, high), chunk_dot<format>(q.y, fifth.y, c, low, high),
                           chunk_dot<format>(q.z, fifth.z, c, low, high), chunk_dot<format>(q.w, fifth.w, c, low, high));
        if (is_shifted(format)) {
            const float in = dot(low, float4(1.0f)) + dot(high, float4(1.0f));
            sums += in * (has_min(format) ? scales4<format>(block + 16, first) : -zero_code(format) * d);
        }
    }
    return sums;
}

/// y[t] = or += W x[t], W in eight interleaved rows: a threadgroup for eight rows and a token, its simdgroups share the
/// columns. Rows of x begin at multiples of 4. `shared` holds eight values for each simdgroup. Uses FORMAT.
kernel void matvec_x8(device const uchar *w [[buffer(0)]], device const float *x [[buffer(1)]],
                      device float *y [[buffer(2)]], constant ProductArgs &a [[buffer(3)]],
                      threadgroup float *shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                      uint tid [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                      uint simd [[simdgroup_index_in_threadgroup]], uint simds [[simdgroups_per_threadgroup]]) {
    device const float *in = x + ulong(group.y) * a.x_stride;
    float4 sums = float4(0.0f);
    switch (FORMAT) {
        X8_FORMATS(sums = interleaved_dots<format>(w, group.x, in, a.cols / 32, simd, simds, lane))
    }
    for (ushort step = 2; step < 32; step *= 2) {
        sums += float4(simd_shuffle_xor(sums.x, step), simd_shuffle_xor(sums.y, step),
                       simd_shuffle_xor(sums.z, step), simd_shuffle_xor(sums.w, step));
    }
    if (lane < 2) {
        threadgroup float *mine = shared + 8 * simd + 4 * lane;
        mine[0] = sums.x;
        mine[1] = sums.y;
        mine[2] = sums.z;
        mine[3] = sums.w;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint row = 8 * group.x + tid;
    if (tid < 8 && row < a.rows) {
        float sum = 0.0f;
        for (uint s = 0; s < simds; s++) sum += shared[8 * s + tid];
        device float *out = y + ulong(group.y) * a.y_stride + row;
        *out = a.accumulate != 0 ? *out + sum : sum;
    }
}

/// Rows that a simdgroup takes at once, so that it reads x once for all of them.
constexpr constant uint ROWS_AT_ONCE = 4;

/// What half `h` of a row's block `b` adds to the row's product; x: what its codes meet, `sum` the sum of these.
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
        dots += chunk_dot<format>(word, fifth, c, x[i], x[(words + i) % 4]);
    }
    if (has_min(format)) return d * dots + float(halves[1]) * sum;
    return d * (dots - zero_code(format) * sum);
}

/// The shares of a lane in the products of rows row .. row + 3 with x. Formats of blocks: half a block of each row a time.
template <uint format>
inline float4 row_dots(device const uchar *w, device const float *x, uint rows, uint cols, uint row, uint lane) {
    float4 sums = float4(0.0f);
    const uint last = rows - 1; // is read again rather than what lies behind it
    const uint rest[3] = {min(row + 1, last), min(row + 2, last), min(row + 3, last)};
    if (format < Q8_0) {
        for (uint col = 4 * lane; col < cols; col += 128) {
            const float4 in = load4(x, col, cols);
            sums += float4(dot(weights4<format>(w, cols, row, col), in), dot(weights4<format>(w, cols, rest[0], col), in),
                           dot(weights4<format>(w, cols, rest[1], col), in), dot(weights4<format>(w, cols, rest[2], col), in));
        }
        return sums;
    }
    const uint h = lane % 2, blocks = cols / 32;
    for (uint b = lane / 2; b < blocks; b += 16) {
        float4 in[4]; // of sixteen columns, or of eight that low nibbles are of and eight that high ones are
        for (uint i = 0; i < 4; i++) {
            const uint c = plain(format) == Q8_0 ? 4 * h + i : 2 * h + i % 2 + i / 2 * 4;
            in[i] = load4(x, 32 * b + 4 * c, cols);
        }
        const float sum = is_shifted(format) ? dot(in[0] + in[1] + in[2] + in[3], float4(1.0f)) : 0.0f;
        sums += float4(half_block_dot<format>(w, blocks, row, b, h, in, sum),
                       half_block_dot<format>(w, blocks, rest[0], b, h, in, sum),
                       half_block_dot<format>(w, blocks, rest[1], b, h, in, sum),
                       half_block_dot<format>(w, blocks, rest[2], b, h, in, sum));
    }
    return sums;
}

/// y[t] = or += W x[t], W row after row: a simdgroup for ROWS_AT_ONCE rows and a token. Uses FORMAT, ALIGNED.
kernel void matvec_rows(device const uchar *w [[buffer(0)]], device const float *x [[buffer(1)]],
                        device float *y [[buffer(2)]], constant ProductArgs &a [[buffer(3)]],
                        uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                        uint simd [[simdgroup_index_in_threadgroup]], uint simds [[simdgroups_per_threadgroup]]) {
    const uint row = (group.x * simds + simd) * ROWS_AT_ONCE;
    if (row >= a.rows) return; // a whole simdgroup
    device const float *in = x + ulong(group.y) * a.x_stride;
    float4 sums = float4(0.0f);
    switch (FORMAT) {
        ROW_FORMATS(sums = row_dots<format>(w, in, a.rows, a.cols, row, lane))
    }
    sums = float4(simd_sum(sums.x), simd_sum(sums.y), simd_sum(sums.z), simd_sum(sums.w));
    if (lane < ROWS_AT_ONCE && row + lane < a.rows) {
        const float sum = lane == 0 ? sums.x : lane == 1 ? sums.y : lane == 2 ? sums.z : sums.w;
        device float *out = y + ulong(group.y) * a.y_stride + row + lane;
        *out = a.accumulate != 0 ? *out + sum : sum;
    }
}

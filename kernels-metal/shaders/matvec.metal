// Products with one token, or with each of a few: bound by reading the weights, each of which is read once.

struct ProductArgs {
    uint rows, cols, tokens, x_stride, y_stride, accumulate;
};

/// The shares of a lane in the products of eight interleaved rows with x: rows 4 * (lane % 2) .. + 3. Sixteen bytes of
/// weights a lane are read at once, those of a simdgroup lying side by side.
template <uint format>
inline float4 interleaved_dots(device const uchar *group, device const float *x, uint blocks, uint part, uint parts,
                        uint lane) {
    const uint lanes = format == Q8_0X8 ? 16 : 8; // that share a block of eight rows and 32 columns
    const uint piece = lane % lanes, chunk = piece / 2;
    float4 sums = float4(0.0f);
    for (uint b = part * (32 / lanes) + lane / lanes; b < blocks; b += parts * (32 / lanes)) {
        device const uchar *block = group + ulong(b) * block_bytes(format);
        const half4 scales = *(device const half4 *)(block + 8 * (piece % 2));
        const uint4 q = *(device const uint4 *)(block + 16 + 16 * piece);
        const float4 d = float4(scales);
        const float4 low = *(device const float4 *)(x + 32 * b + 4 * chunk);
        if (format == Q8_0X8) {
            sums += d * float4(dot(signed_bytes(q.x), low), dot(signed_bytes(q.y), low), dot(signed_bytes(q.z), low),
                               dot(signed_bytes(q.w), low));
        } else {
            const float4 high = *(device const float4 *)(x + 32 * b + 16 + 4 * chunk);
            const float eights = 8.0f * (dot(low, float4(1.0f)) + dot(high, float4(1.0f)));
            const uint m = 0x0f0f0f0f;
            sums += d * (float4(dot(unsigned_bytes(q.x & m), low) + dot(unsigned_bytes(q.x >> 4 & m), high),
                                dot(unsigned_bytes(q.y & m), low) + dot(unsigned_bytes(q.y >> 4 & m), high),
                                dot(unsigned_bytes(q.z & m), low) + dot(unsigned_bytes(q.z >> 4 & m), high),
                                dot(unsigned_bytes(q.w & m), low) + dot(unsigned_bytes(q.w >> 4 & m), high)) -
                         float4(eights));
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
    const uint blocks = a.cols / 32;
    device const uchar *rows = w + ulong(group.x) * blocks * block_bytes(FORMAT);
    device const float *in = x + ulong(group.y) * a.x_stride;
    float4 sums = FORMAT == Q8_0X8 ? interleaved_dots<Q8_0X8>(rows, in, blocks, simd, simds, lane)
                                   : interleaved_dots<Q4_0X8>(rows, in, blocks, simd, simds, lane);
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

template <uint format>
inline float4 row_dots(device const uchar *w, device const float *x, uint rows, uint cols, uint row, uint lane) {
    float4 sums = float4(0.0f);
    const uint last = rows - 1; // is read again rather than what lies behind it
    for (uint col = 4 * lane; col < cols; col += 128) {
        const float4 in = load4(x, col, cols);
        sums += float4(dot(weights4<format>(w, cols, row, col), in),
                       dot(weights4<format>(w, cols, min(row + 1, last), col), in),
                       dot(weights4<format>(w, cols, min(row + 2, last), col), in),
                       dot(weights4<format>(w, cols, min(row + 3, last), col), in));
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
    float4 sums;
    if (FORMAT == F32) sums = row_dots<F32>(w, in, a.rows, a.cols, row, lane);
    else if (FORMAT == F16) sums = row_dots<F16>(w, in, a.rows, a.cols, row, lane);
    else if (FORMAT == BF16) sums = row_dots<BF16>(w, in, a.rows, a.cols, row, lane);
    else if (FORMAT == Q8_0) sums = row_dots<Q8_0>(w, in, a.rows, a.cols, row, lane);
    else sums = row_dots<Q4_0>(w, in, a.rows, a.cols, row, lane);
    sums = float4(simd_sum(sums.x), simd_sum(sums.y), simd_sum(sums.z), simd_sum(sums.w));
    if (lane < ROWS_AT_ONCE && row + lane < a.rows) {
        const float sum = lane == 0 ? sums.x : lane == 1 ? sums.y : lane == 2 ? sums.z : sums.w;
        device float *out = y + ulong(group.y) * a.y_stride + row + lane;
        *out = a.accumulate != 0 ? *out + sum : sum;
    }
}

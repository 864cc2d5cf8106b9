// Reading weight matrices, in the formats of docs/file-format.md.

/// Bytes of a block of 32 columns: of one row, or of eight rows in the X8 formats.
inline uint block_bytes(uint format) {
    return format == Q8_0 ? 34 : format == Q4_0 ? 18 : format == Q8_0X8 ? 272 : 144;
}

/// The four bytes of a word as signed numbers.
inline float4 signed_bytes(uint word) {
    return float4(as_type<char4>(word));
}

/// The four bytes of a word as unsigned numbers.
inline float4 unsigned_bytes(uint word) {
    return float4(as_type<uchar4>(word));
}

/// Four bytes at an even address.
inline uint word_at(device const uchar *p) {
    return uint(*(device const ushort *)p) | uint(*(device const ushort *)(p + 2)) << 16;
}

inline float bfloat_at(device const ushort *p) {
    return as_type<float>(uint(*p) << 16);
}

/// Columns col .. col + 3 of a row, decoded; col is a multiple of 4, and columns behind the last are zeros.
template <uint format>
inline float4 weights4(device const uchar *w, uint cols, uint row, uint col) {
    if (format == F32) {
        device const float *p = (device const float *)w + ulong(row) * cols + col;
        if (cols % 4 == 0) return col < cols ? *(device const float4 *)p : float4(0.0f);
        if (col + 4 <= cols) return float4(p[0], p[1], p[2], p[3]);
        return float4(col < cols ? p[0] : 0.0f, col + 1 < cols ? p[1] : 0.0f, col + 2 < cols ? p[2] : 0.0f, 0.0f);
    }
    if (format == F16) {
        device const half *p = (device const half *)w + ulong(row) * cols + col;
        if (cols % 4 == 0) return col < cols ? float4(*(device const half4 *)p) : float4(0.0f);
        if (col + 4 <= cols) return float4(float(p[0]), float(p[1]), float(p[2]), float(p[3]));
        return float4(col < cols ? float(p[0]) : 0.0f, col + 1 < cols ? float(p[1]) : 0.0f,
                      col + 2 < cols ? float(p[2]) : 0.0f, 0.0f);
    }
    if (format == BF16) {
        device const ushort *p = (device const ushort *)w + ulong(row) * cols + col;
        if (cols % 4 == 0) {
            if (col >= cols) return float4(0.0f);
            const uint2 q = *(device const uint2 *)p;
            return float4(as_type<float>(q.x << 16), as_type<float>(q.x & 0xffff0000), as_type<float>(q.y << 16),
                          as_type<float>(q.y & 0xffff0000));
        }
        if (col + 4 <= cols) return float4(bfloat_at(p), bfloat_at(p + 1), bfloat_at(p + 2), bfloat_at(p + 3));
        return float4(col < cols ? bfloat_at(p) : 0.0f, col + 1 < cols ? bfloat_at(p + 1) : 0.0f,
                      col + 2 < cols ? bfloat_at(p + 2) : 0.0f, 0.0f);
    }
    if (col >= cols) return float4(0.0f);
    const ulong blocks = cols / 32;
    const uint i = col % 32;
    if (format == Q8_0) {
        device const uchar *p = w + (row * blocks + col / 32) * 34;
        return float(*(device const half *)p) * signed_bytes(word_at(p + 2 + i));
    }
    if (format == Q4_0) {
        device const uchar *p = w + (row * blocks + col / 32) * 18;
        const uint word = word_at(p + 2 + i % 16);
        return float(*(device const half *)p) * (unsigned_bytes(word >> (i < 16 ? 0 : 4) & 0x0f0f0f0f) - float4(8.0f));
    }
    // eight rows interleaved: eight scales, then for every four columns a word a row
    const uint lane = row % 8;
    device const uchar *p = w + (row / 8 * blocks + col / 32) * block_bytes(format);
    const float d = float(((device const half *)p)[lane]);
    device const uint *words = (device const uint *)(p + 16) + lane;
    if (format == Q8_0X8) return d * signed_bytes(words[i / 4 * 8]);
    return d * (unsigned_bytes(words[i % 16 / 4 * 8] >> (i < 16 ? 0 : 4) & 0x0f0f0f0f) - float4(8.0f));
}

struct GatherArgs {
    uint cols, rows, y_stride;
};

template <uint format>
inline void gather_as(device const uchar *w, uint row, device float *y, uint cols, uint col) {
    const float4 v = weights4<format>(w, cols, row, col);
    y[col] = v.x;
    if (col + 1 < cols) y[col + 1] = v.y;
    if (col + 2 < cols) y[col + 2] = v.z;
    if (col + 3 < cols) y[col + 3] = v.w;
}

/// y[i] = row rows[i] of the table, decoded. A thread for four columns. Uses FORMAT.
kernel void gather(device const uchar *w [[buffer(0)]], device const uint *rows [[buffer(1)]],
                   device float *y [[buffer(2)]], constant GatherArgs &a [[buffer(3)]],
                   uint3 position [[thread_position_in_grid]]) {
    const uint col = 4 * position.x, i = position.y;
    if (col >= a.cols || i >= a.rows) return;
    device float *out = y + ulong(i) * a.y_stride;
    if (FORMAT == F32) gather_as<F32>(w, rows[i], out, a.cols, col);
    else if (FORMAT == F16) gather_as<F16>(w, rows[i], out, a.cols, col);
    else if (FORMAT == BF16) gather_as<BF16>(w, rows[i], out, a.cols, col);
    else if (FORMAT == Q8_0) gather_as<Q8_0>(w, rows[i], out, a.cols, col);
    else if (FORMAT == Q4_0) gather_as<Q4_0>(w, rows[i], out, a.cols, col);
    else if (FORMAT == Q8_0X8) gather_as<Q8_0X8>(w, rows[i], out, a.cols, col);
    else gather_as<Q4_0X8>(w, rows[i], out, a.cols, col);
}

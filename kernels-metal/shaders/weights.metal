// Decoding of weight matrices, in the formats of docs/file-format.md.

/// The statement for the value of FORMAT, with the constant `format` in scope.
#define CASE(name, ...)                \
    case name: {                       \
        constexpr uint format = name;  \
        __VA_ARGS__;                   \
        break;                         \
    }
#define ROW_FORMATS(...)                                                                                         \
    CASE(F32, __VA_ARGS__) CASE(F16, __VA_ARGS__) CASE(BF16, __VA_ARGS__) CASE(Q8_0, __VA_ARGS__)                \
    CASE(Q4_0, __VA_ARGS__) CASE(Q4_1, __VA_ARGS__) CASE(Q5_0, __VA_ARGS__) CASE(Q5_1, __VA_ARGS__)              \
    CASE(IQ4_NL, __VA_ARGS__) CASE(MXFP4, __VA_ARGS__)
#define X8_FORMATS(...)                                                                                          \
    CASE(Q8_0X8, __VA_ARGS__) CASE(Q4_0X8, __VA_ARGS__) CASE(Q4_1X8, __VA_ARGS__) CASE(Q5_0X8, __VA_ARGS__)      \
    CASE(Q5_1X8, __VA_ARGS__) CASE(IQ4_NLX8, __VA_ARGS__) CASE(MXFP4X8, __VA_ARGS__)

// ---- blocks of 32 columns: a scale d, a minimum m, the fifth bits of codes, and codes, as far as the format has them. A
// value is d * level(code) + m. Of eight interleaved rows there come first all scales, then all minima, and so on.

/// Levels of codes; those of MXFP4 are doubled.
constant float IQ4_NL_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constant float MXFP4_LEVELS[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

inline uint plain(uint format) {
    return format % X8;
}

inline bool has_min(uint format) {
    return plain(format) == Q4_1 || plain(format) == Q5_1;
}

inline bool has_fifth(uint format) {
    return plain(format) == Q5_0 || plain(format) == Q5_1;
}

/// The zero point, in formats with evenly spaced levels and without a minimum.
inline float zero_code(uint format) {
    return plain(format) == Q4_0 ? 8.0f : plain(format) == Q5_0 ? 16.0f : 0.0f;
}

/// Whether a value is more than d * level.
inline bool is_shifted(uint format) {
    return has_min(format) || zero_code(format) != 0.0f;
}

/// Offset of the fifth bits in a row's block.
inline uint fifth_at(uint format) {
    return plain(format) == MXFP4 ? 1 : has_min(format) ? 4 : 2;
}

/// Offset of the codes.
inline uint codes_at(uint format) {
    return fifth_at(format) + (has_fifth(format) ? 4 : 0);
}

/// Size of a row's block in bytes.
inline uint block_bytes(uint format) {
    return codes_at(format) + (plain(format) == Q8_0 ? 32 : 16);
}

/// The scale of MXFP4: half of 2^(e - 127), since levels are doubled.
inline float power_of_two(uint e) {
    return as_type<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

/// The four bytes of a word as signed integers.
inline float4 signed_bytes(uint word) {
    return float4(as_type<char4>(word));
}

/// The four bytes of a word as unsigned integers.
inline float4 unsigned_bytes(uint word) {
    return float4(as_type<uchar4>(word));
}

/// The levels for the four byte codes of a word.
inline float4 looked_up(constant float *levels, uint word) {
    const uchar4 codes = as_type<uchar4>(word);
    return float4(levels[codes.x], levels[codes.y], levels[codes.z], levels[codes.w]);
}

/// The levels of the four codes in a word, including the zero_code if there is one.
template <uint format>
inline float4 levels4(uint word) {
    if (plain(format) == Q8_0) return signed_bytes(word);
    if (plain(format) == IQ4_NL) return looked_up(IQ4_NL_LEVELS, word);
    if (plain(format) == MXFP4) return looked_up(MXFP4_LEVELS, word);
    return unsigned_bytes(word);
}

/// The codes of columns 4c .. 4c + 3 of a row, one byte each: from the word with their bytes or nibbles, and the row's
/// fifth bits.
template <uint format>
inline uint codes4(uint word, uint fifth, uint c) {
    if (plain(format) == Q8_0) return word;
    const uint nibbles = word >> (c < 4 ? 0 : 4) & 0x0f0f0f0f;
    if (!has_fifth(format)) return nibbles;
    // one byte for each column j of a chunk, or 32 bits in column order: four of these are expanded to four bytes
    const uint bits = format >= X8 ? fifth >> c : (fifth >> 4 * c & 15) * 0x00204081;
    return nibbles | (bits & 0x01010101) << 4;
}

/// Four bytes of a block. Blocks are at even addresses, except in rows of MXFP4.
template <uint format>
inline uint word_at(device const uchar *p) {
    if (format >= X8) return *(device const uint *)p;
    if (format == MXFP4) return uint(p[0]) | uint(p[1]) << 8 | uint(p[2]) << 16 | uint(p[3]) << 24;
    return uint(*(device const ushort *)p) | uint(*(device const ushort *)(p + 2)) << 16;
}

inline float bfloat_at(device const ushort *p) {
    return as_type<float>(uint(*p) << 16);
}

/// Columns col .. col + 3 of a row, decoded; col is a multiple of 4, and columns after the last are zeros.
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
    const uint rows = format >= X8 ? 8 : 1, lane = row % rows, c = col % 32 / 4;
    device const uchar *block = w + (row / rows * ulong(cols / 32) + col / 32) * (rows * block_bytes(format));
    device const half *halves = (device const half *)block;
    const float d = plain(format) == MXFP4 ? power_of_two(block[lane]) : float(halves[lane]);
    const uint word = word_at<format>(block + rows * codes_at(format) +
                                      4 * ((plain(format) == Q8_0 ? c : c % 4) * rows + lane));
    const uint fifth = has_fifth(format) ? word_at<format>(block + rows * fifth_at(format) + 4 * lane) : 0;
    const float4 v = d * levels4<format>(codes4<format>(word, fifth, c));
    if (!is_shifted(format)) return v;
    return v + float4(has_min(format) ? float(halves[rows + lane]) : -zero_code(format) * d);
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

/// y[i] = row rows[i] of the table, decoded. One thread per four columns. Uses FORMAT.
kernel void gather(device const uchar *w [[buffer(0)]], device const uint *rows [[buffer(1)]],
                   device float *y [[buffer(2)]], constant GatherArgs &a [[buffer(3)]],
                   uint3 position [[thread_position_in_grid]]) {
    const uint col = 4 * position.x, i = position.y;
    if (col >= a.cols || i >= a.rows) return;
    device float *out = y + ulong(i) * a.y_stride;
    switch (FORMAT) {
        ROW_FORMATS(gather_as<format>(w, rows[i], out, a.cols, col))
        X8_FORMATS(gather_as<format>(w, rows[i], out, a.cols, col))
    }
}

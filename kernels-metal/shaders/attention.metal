// Softmax attention over spans of rows: meta tokens, the two parts of a ring buffer, the chunk itself. Query heads that
// share a KV head are processed together, so that keys and values are read once for all of them.

/// Rows first .. first + rows - 1 of the cache, or of the chunk.
struct KvSpan {
    uint first, rows, chunk, unused;
};

constexpr constant uint SPANS = 4; // per token

/// Values i .. i + 3 of keys or values, i a multiple of 4; zeros from `end` on.
inline float4 cached4(device const uchar *p, ulong i, ulong end) {
    if (ALIGNED != 0) {
        if (CACHE_HALF != 0) return float4(*(device const half4 *)(p + 2 * i));
        return *(device const float4 *)(p + 4 * i);
    }
    float v[4];
    for (uint j = 0; j < 4; j++) {
        v[j] = i + j >= end ? 0.0f : CACHE_HALF != 0 ? float(((device const half *)p)[i + j])
                                                     : ((device const float *)p)[i + j];
    }
    return float4(v[0], v[1], v[2], v[3]);
}

inline float cached(device const uchar *p, ulong i) {
    return CACHE_HALF != 0 ? float(((device const half *)p)[i]) : ((device const float *)p)[i];
}

// ---- decode: the rows that a token sees are cut into slices (split-KV), whose partial results are then combined

constexpr constant uint SLICE = 64; // rows
constexpr constant uint HEADS_AT_ONCE = 8;

struct AttendDecodeArgs {
    uint tokens, q_stride, y_stride, slices;
    float scale;
};

/// Softmax over one slice: partials [tokens, KV_HEADS * GROUP, slices, VALUE_DIM + 2] = the weighted sum of the values,
/// the maximum score, the sum of the weights. Threadgroups: [slices, KV_HEADS, tokens]; `shared` holds (GROUP + 2) *
/// SLICE values. Uses CACHE_HALF, KEY_DIM, VALUE_DIM, GROUP, KV_HEADS, ALIGNED.
kernel void attend_decode(device const float *q [[buffer(0)]], device const uchar *cache_k [[buffer(1)]],
                          device const uchar *cache_v [[buffer(2)]], device const uchar *chunk_k [[buffer(3)]],
                          device const uchar *chunk_v [[buffer(4)]], device const KvSpan *spans [[buffer(5)]],
                          device float *partials [[buffer(6)]], constant AttendDecodeArgs &a [[buffer(7)]],
                          threadgroup float *shared [[threadgroup(0)]],
                          uint3 group [[threadgroup_position_in_grid]], uint tid [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]],
                          uint simds [[simdgroups_per_threadgroup]]) {
    const uint head = group.y, token = group.z;
    threadgroup float *scores = shared;                                // [GROUP][SLICE]
    threadgroup uint *sources = (threadgroup uint *)(shared + GROUP * SLICE); // [SLICE][2]: chunk?, row
    // find the slice's rows
    for (uint i = tid; i < SLICE; i += 32 * simds) {
        uint left = group.x * SLICE + i, chunk = 0, row = 0;
        bool found = false;
        for (uint r = 0; r < SPANS; r++) {
            const KvSpan span = spans[token * SPANS + r];
            if (!found && left < span.rows) {
                found = true;
                chunk = span.chunk;
                row = span.first + left;
            }
            if (!found) left -= span.rows;
        }
        sources[2 * i] = found ? chunk : 2;
        sources[2 * i + 1] = row;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // scores: eight lanes per row
    device const float *queries = q + ulong(token) * a.q_stride + head * GROUP * KEY_DIM;
    for (uint i = simd * 4 + lane / 8; i < SLICE; i += simds * 4) {
        const uint source = sources[2 * i];
        device const uchar *keys = source == 1 ? chunk_k : cache_k;
        const ulong from = (ulong(sources[2 * i + 1]) * KV_HEADS + head) * KEY_DIM;
        for (uint g0 = 0; g0 < GROUP; g0 += HEADS_AT_ONCE) {
            float sums[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
            const uint heads = min(HEADS_AT_ONCE, GROUP - g0);
            if (source < 2) {
                for (uint j = lane % 8 * 4; j < KEY_DIM; j += 32) {
                    const float4 k = cached4(keys, from + j, from + KEY_DIM);
                    for (uint g = 0; g < HEADS_AT_ONCE; g++) { // constant bounds, so that sums are in registers
                        if (g < heads) sums[g] += dot(load4(queries + (g0 + g) * KEY_DIM, j, KEY_DIM), k);
                    }
                }
            }
            for (uint g = 0; g < HEADS_AT_ONCE; g++) {
                if (g >= heads) continue; // uniform for all lanes
                float sum = sums[g];
                for (ushort step = 1; step < 8; step *= 2) sum += simd_shuffle_xor(sum, step);
                if (lane % 8 == 0) scores[(g0 + g) * SLICE + i] = source < 2 ? sum * a.scale : -INFINITY;
            }
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // weights: one simdgroup per head
    const ulong part = VALUE_DIM + 2;
    device float *out = partials + ((ulong(token) * KV_HEADS + head) * GROUP * a.slices + group.x) * part;
    for (uint g = simd; g < GROUP; g += simds) {
        threadgroup float *s = scores + g * SLICE;
        const float top = simd_max(max(s[lane], s[lane + 32]));
        const float first = top == -INFINITY ? 0.0f : precise::exp(s[lane] - top);
        const float second = top == -INFINITY ? 0.0f : precise::exp(s[lane + 32] - top);
        s[lane] = first;
        s[lane + 32] = second;
        const float sum = simd_sum(first + second);
        if (lane == 0) {
            out[g * a.slices * part + VALUE_DIM] = top;
            out[g * a.slices * part + VALUE_DIM + 1] = sum;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // values: one thread per column, four rows at once so that their loads overlap
    for (uint j = tid; j < VALUE_DIM; j += 32 * simds) {
        for (uint g0 = 0; g0 < GROUP; g0 += HEADS_AT_ONCE) {
            float sums[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
            const uint heads = min(HEADS_AT_ONCE, GROUP - g0);
            for (uint i = 0; i < SLICE && sources[2 * i] < 2; i += 4) {
                float v[4];
                for (uint r = 0; r < 4; r++) {
                    const uint source = sources[2 * (i + r)];
                    device const uchar *values = source == 1 ? chunk_v : cache_v;
                    const ulong at = (ulong(sources[2 * (i + r) + 1]) * KV_HEADS + head) * VALUE_DIM + j;
                    v[r] = source < 2 ? cached(values, at) : 0.0f;
                }
                for (uint g = 0; g < HEADS_AT_ONCE; g++) {
                    if (g >= heads) continue;
                    threadgroup float *weights = scores + (g0 + g) * SLICE + i;
                    sums[g] += weights[0] * v[0] + weights[1] * v[1] + weights[2] * v[2] + weights[3] * v[3];
                }
            }
            for (uint g = 0; g < HEADS_AT_ONCE; g++) {
                if (g < heads) out[(g0 + g) * a.slices * part + j] = sums[g];
            }
        }
    }
}

/// Combines the partial results of a token's head. Threadgroups: [KV_HEADS * GROUP, tokens]; `shared` holds one value
/// per slice and per simdgroup. Uses VALUE_DIM, KV_HEADS, GROUP.
kernel void combine_partials(device const float *partials [[buffer(0)]], device float *y [[buffer(1)]],
                             constant AttendDecodeArgs &a [[buffer(2)]], threadgroup float *shared [[threadgroup(0)]],
                             uint3 group [[threadgroup_position_in_grid]], uint tid [[thread_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]],
                             uint simds [[simdgroups_per_threadgroup]]) {
    const ulong part = VALUE_DIM + 2;
    device const float *in = partials + (ulong(group.y) * KV_HEADS * GROUP + group.x) * a.slices * part;
    threadgroup float *scales = shared + simds;
    float top = -INFINITY;
    for (uint s = lane; s < a.slices; s += 32) top = max(top, in[s * part + VALUE_DIM]);
    top = simd_max(top);
    float weights = 0.0f;
    for (uint s = tid; s < a.slices; s += 32 * simds) {
        const float scale = precise::exp(in[s * part + VALUE_DIM] - top); // 0 for a slice without rows
        scales[s] = scale;
        weights += scale * in[s * part + VALUE_DIM + 1];
    }
    weights = group_sum(weights, shared, lane, simd, simds);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = tid; j < VALUE_DIM; j += 32 * simds) {
        float sum = 0.0f;
        for (uint s = 0; s < a.slices; s++) sum += scales[s] * in[s * part + j];
        y[ulong(group.y) * a.y_stride + group.x * VALUE_DIM + j] = sum / weights;
    }
}

// ---- prefill: tiles of eight tokens walk over blocks of sixteen rows with an online softmax; scores are never stored

constexpr constant uint TILE = 8;   // tokens
constexpr constant uint BLOCK = 16; // rows
constexpr constant uint MAX_KEY_TILES = 16;   // blocks of 8 in KEY_DIM
constexpr constant uint MAX_VALUE_TILES = 16; // blocks of 8 in VALUE_DIM

struct AttendPrefillArgs {
    uint tokens, q_stride, y_stride;
    uint cache_end, chunk_rows; // visible rows of the cache, rows of the chunk
    float scale;
};

/// Softmax attention with online softmax. One simdgroup per query head; only its scores of one tile and block exist at
/// a time. Rows are numbered consecutively: the cache's from 0, the chunk's from the next multiple of BLOCK.
/// Threadgroups: [tiles, KV_HEADS, GROUP / simdgroups]; `shared` holds BLOCK * (KEY_DIM + VALUE_DIM) values, and TILE *
/// (BLOCK + TILE) per simdgroup. KEY_DIM and VALUE_DIM are multiples of 8 up to 128. Uses CACHE_HALF, KEY_DIM,
/// VALUE_DIM, GROUP, KV_HEADS, ALIGNED.
kernel void attend_prefill(device const float *q [[buffer(0)]], device const uchar *cache_k [[buffer(1)]],
                           device const uchar *cache_v [[buffer(2)]], device const uchar *chunk_k [[buffer(3)]],
                           device const uchar *chunk_v [[buffer(4)]], device const KvSpan *spans [[buffer(5)]],
                           device float *y [[buffer(6)]], constant AttendPrefillArgs &a [[buffer(7)]],
                           threadgroup float *shared [[threadgroup(0)]],
                           uint3 group [[threadgroup_position_in_grid]], uint tid [[thread_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]],
                           uint simds [[simdgroups_per_threadgroup]]) {
    const uint first_token = group.x * TILE, kv_head = group.y, g = group.z * simds + simd;
    const uint head = kv_head * GROUP + min(g, GROUP - 1); // an excess simdgroup repeats the last head
    threadgroup float *keys = shared, *values = shared + BLOCK * KEY_DIM;
    threadgroup float *scores = values + BLOCK * VALUE_DIM + simd * TILE * (BLOCK + TILE); // [TILE][BLOCK]
    threadgroup float *diagonal = scores + TILE * BLOCK;                                  // [TILE][TILE]

    // the tile's queries, zeros beyond the last token
    simdgroup_float8x8 queries[MAX_KEY_TILES];
    for (uint j = 0; j < MAX_KEY_TILES && j < KEY_DIM / 8; j++) {
        for (uint i = lane; i < 64; i += 32) {
            const uint token = first_token + i / 8;
            diagonal[i] = token < a.tokens ? q[ulong(token) * a.q_stride + head * KEY_DIM + 8 * j + i % 8] : 0.0f;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_load(queries[j], diagonal, 8);
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    diagonal[lane] = 0.0f;
    diagonal[lane + 32] = 0.0f;
    simdgroup_float8x8 sums[MAX_VALUE_TILES];
    for (uint j = 0; j < MAX_VALUE_TILES; j++) sums[j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);

    // one lane per span of a token of the tile, and per four scores of a token
    const uint row = lane / 4, token = min(first_token + row, a.tokens - 1);
    const uint chunk_from = (a.cache_end + BLOCK - 1) / BLOCK * BLOCK;
    uint froms[4], ends[4];
    for (uint r = 0; r < SPANS; r++) {
        const KvSpan span = spans[token * SPANS + r];
        froms[r] = span.chunk != 0 ? chunk_from + span.first : span.first;
        ends[r] = froms[r] + span.rows;
    }
    const uint my_from = lane % 4 == 0 ? froms[0] : lane % 4 == 1 ? froms[1] : lane % 4 == 2 ? froms[2] : froms[3];
    const uint my_end = lane % 4 == 0 ? ends[0] : lane % 4 == 1 ? ends[1] : lane % 4 == 2 ? ends[2] : ends[3];
    float top = -INFINITY, weights = 0.0f;

    for (uint from = 0; from < chunk_from + a.chunk_rows; from += BLOCK) {
        // uniform for all simdgroups, since the tokens are the same
        if (!simd_any(my_from < my_end && my_from < from + BLOCK && from < my_end)) continue;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const bool in_chunk = from >= chunk_from;
        const uint first = in_chunk ? from - chunk_from : from, rows = in_chunk ? a.chunk_rows : a.cache_end;
        for (uint i = tid; i < BLOCK * (KEY_DIM / 4); i += 32 * simds) {
            const uint r = i / (KEY_DIM / 4), j = i % (KEY_DIM / 4) * 4;
            const ulong at = (ulong(first + r) * KV_HEADS + kv_head) * KEY_DIM + j;
            const float4 v = first + r < rows ? cached4(in_chunk ? chunk_k : cache_k, at, at + 4) : float4(0.0f);
            threadgroup float *to = keys + r * KEY_DIM + j;
            to[0] = v.x;
            to[1] = v.y;
            to[2] = v.z;
            to[3] = v.w;
        }
        for (uint i = tid; i < BLOCK * (VALUE_DIM / 4); i += 32 * simds) {
            const uint r = i / (VALUE_DIM / 4), j = i % (VALUE_DIM / 4) * 4;
            const ulong at = (ulong(first + r) * KV_HEADS + kv_head) * VALUE_DIM + j;
            const float4 v = first + r < rows ? cached4(in_chunk ? chunk_v : cache_v, at, at + 4) : float4(0.0f);
            threadgroup float *to = values + r * VALUE_DIM + j;
            to[0] = v.x;
            to[1] = v.y;
            to[2] = v.z;
            to[3] = v.w;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);

        for (uint i = 0; i < BLOCK / 8; i++) {
            simdgroup_float8x8 s = make_filled_simdgroup_matrix<float, 8, 8>(0.0f), k;
            for (uint j = 0; j < MAX_KEY_TILES && j < KEY_DIM / 8; j++) {
                simdgroup_load(k, keys + 8 * i * KEY_DIM + 8 * j, KEY_DIM, ulong2(0, 0), true);
                simdgroup_multiply_accumulate(s, queries[j], k, s);
            }
            simdgroup_store(s, scores + 8 * i, BLOCK);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);

        float s[4];
        float block_max = -INFINITY;
        for (uint i = 0; i < 4; i++) {
            const uint col = lane % 4 * 4 + i, at = from + col;
            bool seen = false;
            for (uint r = 0; r < SPANS; r++) seen = seen || (froms[r] <= at && at < ends[r]);
            s[i] = seen ? scores[row * BLOCK + col] * a.scale : -INFINITY;
            block_max = max(block_max, s[i]);
        }
        block_max = max(block_max, simd_shuffle_xor(block_max, ushort(1)));
        block_max = max(block_max, simd_shuffle_xor(block_max, ushort(2)));
        const float new_max = max(top, block_max);
        const float old_scale = new_max == -INFINITY ? 1.0f : precise::exp(top - new_max);
        float block_weights = 0.0f;
        for (uint i = 0; i < 4; i++) {
            const float weight = s[i] == -INFINITY ? 0.0f : precise::exp(s[i] - new_max);
            scores[row * BLOCK + lane % 4 * 4 + i] = weight;
            block_weights += weight;
        }
        block_weights += simd_shuffle_xor(block_weights, ushort(1));
        block_weights += simd_shuffle_xor(block_weights, ushort(2));
        weights = weights * old_scale + block_weights;
        top = new_max;
        if (lane % 4 == 0) diagonal[row * TILE + row] = old_scale;
        simdgroup_barrier(mem_flags::mem_threadgroup);

        simdgroup_float8x8 old_scales, p[BLOCK / 8];
        simdgroup_load(old_scales, diagonal, TILE);
        for (uint i = 0; i < BLOCK / 8; i++) simdgroup_load(p[i], scores + 8 * i, BLOCK);
        for (uint j = 0; j < MAX_VALUE_TILES && j < VALUE_DIM / 8; j++) {
            simdgroup_float8x8 rescaled, v;
            simdgroup_multiply(rescaled, old_scales, sums[j]);
            for (uint i = 0; i < BLOCK / 8; i++) {
                simdgroup_load(v, values + 8 * i * VALUE_DIM + 8 * j, VALUE_DIM);
                simdgroup_multiply_accumulate(rescaled, p[i], v, rescaled);
            }
            sums[j] = rescaled;
        }
    }

    // divide by the sums of the weights
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (lane % 4 == 0) diagonal[row * TILE + row] = 1.0f / weights;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 inverse;
    simdgroup_load(inverse, diagonal, TILE);
    for (uint j = 0; j < MAX_VALUE_TILES && j < VALUE_DIM / 8; j++) {
        simdgroup_float8x8 out;
        simdgroup_multiply(out, inverse, sums[j]);
        simdgroup_store(out, scores, 8);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = lane; i < 64; i += 32) {
            const uint t = first_token + i / 8;
            if (t < a.tokens && g < GROUP) {
                y[ulong(t) * a.y_stride + head * VALUE_DIM + 8 * j + i % 8] = scores[i];
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

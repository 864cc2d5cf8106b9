/* The reference implementation of every kernel, written for clarity instead of speed. It runs on any CPU, and tests
 * compare the other tables with it. */
#include <math.h>

#include "half.h"
#include "tiles.h"
#include "types.h"

static float silu(float x) { return x / (1.0f + expf(-x)); }

static float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

/* ---- products ---- */

static float dot_f32(const uint8_t *w, const float *x, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) {
        float v;
        memcpy(&v, w + 4 * i, sizeof v);
        sum += v * x[i];
    }
    return sum;
}

static float dot_f16(const uint8_t *w, const float *x, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += f16_to_f32(load_u16(w + 2 * i)) * x[i];
    return sum;
}

static float dot_bf16(const uint8_t *w, const float *x, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += bf16_to_f32(load_u16(w + 2 * i)) * x[i];
    return sum;
}

/* A block of a quantized type: value i is d*q[i] + m. */
typedef struct block {
    float d, m;
    int8_t q[HK_BLOCK];
} block;

/* The block of row `lane` of `lanes` interleaved ones; `lanes` is 1 in ggml's order. */
static block load_block(hk_type type, const uint8_t *w, size_t lanes, size_t lane) {
    const int8_t *levels = type_levels(type);
    block b = {.m = 0};
    if (scale_bytes(type) == 1)
        b.d = ldexpf(1, w[lane] - 128);
    else
        b.d = f16_to_f32(load_u16(w + 2 * lane));
    w += lanes * scale_bytes(type);
    if (has_min(type)) {
        b.m = f16_to_f32(load_u16(w + 2 * lane));
        w += lanes * 2;
    }
    const uint8_t *fifth = w + 4 * lane;
    if (has_fifth(type)) w += lanes * 4;
    for (size_t i = 0; i < HK_BLOCK; i++) {
        const size_t j = code_bits(type) == 8 ? i : i % 16;
        const uint8_t byte = w[(j / 4 * lanes + lane) * 4 + j % 4];
        int code = i < 16 ? byte & 15 : byte >> 4;
        if (has_fifth(type)) code |= (lanes > 1 ? fifth[i % 4] >> i / 4 & 1 : fifth[i / 8] >> i % 8 & 1) << 4;
        if (code_bits(type) == 8)
            b.q[i] = (int8_t)byte;
        else
            b.q[i] = levels ? levels[code] : (int8_t)(code - zero_point(type));
    }
    return b;
}

static float dot_blocks(hk_type type, const uint8_t *w, size_t row, const int8_t *q, const float *d, size_t n) {
    const size_t lanes = is_packed(type) ? HK_LANES : 1, size = type_bytes(type);
    w += row / lanes * (n / HK_BLOCK) * size;
    float sum = 0;
    for (size_t k = 0; k < n / HK_BLOCK; k++, w += size, q += HK_BLOCK) {
        const block b = load_block(type, w, lanes, row % lanes);
        int32_t products = 0, values = 0;
        for (int i = 0; i < HK_BLOCK; i++) {
            products += b.q[i] * q[i];
            values += q[i];
        }
        sum += b.d * d[k] * (float)products + b.m * (d[k] * (float)values);
    }
    return sum;
}

static void matmul(hk_type type, const void *w, size_t rows, size_t cols, const hk_act *x, size_t tokens, float *y,
                   size_t y_stride, int accumulate) {
    const size_t blocks = cols / HK_BLOCK;
    const uint8_t *bytes = w;
    for (size_t r = 0; r < rows; r++)
        for (size_t t = 0; t < tokens; t++) {
            const float *values = x->x + t * x->stride;
            float v;
            switch (type) {
            case HK_F32: v = dot_f32(bytes + r * cols * 4, values, cols); break;
            case HK_F16: v = dot_f16(bytes + r * cols * 2, values, cols); break;
            case HK_BF16: v = dot_bf16(bytes + r * cols * 2, values, cols); break;
            default: v = dot_blocks(type, bytes, r, x->q + t * cols, x->d + t * blocks, cols);
            }
            float *out = y + t * y_stride + r;
            *out = accumulate ? *out + v : v;
        }
}

static void quantize(const float *x, size_t n, int8_t *q, float *d, int32_t *offset) {
    for (size_t b = 0; b < n / HK_BLOCK; b++, x += HK_BLOCK, q += HK_BLOCK) {
        float max = 0;
        for (int j = 0; j < HK_BLOCK; j++) max = fabsf(x[j]) <= max || max != max ? max : fabsf(x[j]); /* or NaN */
        d[b] = max / 127.0f;
        offset[b] = 0;
        const float inverse = max >= HK_TINY ? 127.0f / max : 0;
        for (int j = 0; j < HK_BLOCK; j++) {
            const float v = rintf(x[j] * inverse);
            q[j] = (int8_t)(v >= -127 ? v <= 127 ? v : 127 : -127); /* a NaN becomes -127 */
            offset[b] -= 8 * q[j];
        }
    }
}

const hk_type_facts *hk_facts(hk_type type) {
#define FACTS(_, name, id, scale, min, fifth, bits, zero, table) \
    {HK_##name, HK_##name##X8, scale, bits, min, fifth, zero, table},
    static const hk_type_facts facts[] = {HK_QUANTIZED_TYPES(FACTS, _)};
#undef FACTS
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        if (facts[i].plain == type || facts[i].packed == type) return &facts[i];
    return NULL;
}

void hk_interleave(const int8_t *q, const float *d, const int32_t *offset, size_t blocks, size_t tokens, int8_t *to_q,
                   float *to_d, int32_t *to_offset) {
    for (size_t b = 0; b < blocks; b++, q += HK_BLOCK, to_q += HK_BLOCK * tokens) {
        for (size_t c = 0; c < HK_BLOCK / 4; c++) memcpy(to_q + 4 * c * tokens, q + 4 * c, 4);
        to_d[b * tokens] = d[b];
        to_offset[b * tokens] = offset[b];
    }
}

/* ---- norms, positions, element by element ---- */

static float inverse_rms(const float *x, float eps, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)n + eps);
}

static void rms_norm(const float *x, const float *gain, float eps, size_t n, float *y) {
    const float s = inverse_rms(x, eps, n);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * s * gain[i];
}

static void fuse(const float *a, const float *gain_a, const float *b, const float *gain_b, float eps, size_t n,
                 float *y) {
    const float sa = 0.5f * inverse_rms(a, eps, n), sb = 0.5f * inverse_rms(b, eps, n);
    for (size_t i = 0; i < n; i++) y[i] = a[i] * sa * gain_a[i] + b[i] * sb * gain_b[i];
}

static void rope(float *x, size_t heads, size_t dim, const float *cos, const float *sin) {
    const size_t half = dim / 2;
    for (size_t h = 0; h < heads; h++, x += dim)
        for (size_t j = 0; j < half; j++) {
            const float lo = x[j], hi = x[j + half];
            x[j] = lo * cos[j] - hi * sin[j];
            x[j + half] = hi * cos[j] + lo * sin[j];
        }
}

static void to_f16(const float *x, size_t n, uint16_t *y) {
    for (size_t i = 0; i < n; i++) y[i] = f32_to_f16(x[i]);
}

static void silu_mul(const float *gate, const float *up, size_t n, float *y) {
    for (size_t i = 0; i < n; i++) y[i] = silu(gate[i]) * up[i];
}

static void relu2(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i] * x[i];
}

/* ---- attention heads ---- */

static float score(const hk_kv_sequence *kv, const float *q, const void *k, float scale) {
    float s = 0;
    for (size_t j = 0; j < kv->key_dim; j++) s += q[j] * kv_value(kv->type, k, j);
    return s * scale;
}

/* Online softmax: updates `max` with `tile_max`, and computes the factors that rescale the previous sums and the
 * tile's. */
static void online_softmax_rescale(float *max, float tile_max, float *old_scale, float *new_scale) {
    const float before = *max;
    *max = tile_max > before ? tile_max : before;
    *old_scale = before == *max ? 1 : expf(before - *max);
    *new_scale = tile_max == *max ? 1 : expf(tile_max - *max);
}

/* A query of one KV head and its accumulated output: the sum of exp(score - max) * V, still to be divided by `sum`. */
typedef struct query {
    const float *q;
    size_t head;
    float scale, max, sum, *out;
} query;

/* Adds a tile, of which some lanes are visible to the query. */
static void attend_tile(const hk_kv_sequence *kv, kv_tile tile, lane_range seen, query *s) {
    float weights[HK_TILE_ROWS], tile_max = -INFINITY, total = 0, old_scale, new_scale;
    const void *values[HK_TILE_ROWS];
    const hk_kv_span *span = kv->spans;
    for (size_t r = 0, row = tile.at; r < tile.rows; r++, row++) {
        for (; row >= span->rows; span++) row -= span->rows;
        values[r] = kv_at(kv->type, span->v, s->head * span->v_head_stride + row * kv->value_dim);
        const void *key = kv_at(kv->type, span->k, s->head * span->k_head_stride + row * kv->key_dim);
        const size_t lane = tile.lane + r;
        weights[r] = lane >= seen.begin && lane < seen.end ? score(kv, s->q, key, s->scale) : -INFINITY;
        tile_max = fmaxf(tile_max, weights[r]);
    }
    for (size_t r = 0; r < tile.rows; r++) {
        weights[r] = weights[r] == -INFINITY ? 0 : expf(weights[r] - tile_max);
        total += weights[r];
    }
    online_softmax_rescale(&s->max, tile_max, &old_scale, &new_scale);
    s->sum = s->sum * old_scale + total * new_scale;
    for (size_t j = 0; j < kv->value_dim; j++) {
        float v = 0;
        for (size_t r = 0; r < tile.rows; r++) v += weights[r] * kv_value(kv->type, values[r], j);
        s->out[j] = s->out[j] * old_scale + v * new_scale;
    }
}

static query new_query(const hk_kv_sequence *kv, const float *q, size_t head, float scale, float *out) {
    for (size_t j = 0; j < kv->value_dim; j++) out[j] = 0;
    return (query){q, head, scale, -INFINITY, 0, out};
}

static void attend_prefill(const hk_attend_prefill *a) {
    const hk_kv_sequence *kv = &a->kv;
    for (size_t t = 0; t < a->tokens; t++)
        for (size_t h = 0; h < kv->kv_heads * a->group; h++) {
            query s = new_query(kv, a->q + t * a->q_stride + h * kv->key_dim, h / a->group, a->scale,
                                a->out + t * a->out_stride + h * kv->value_dim);
            kv_tile tile;
            for (size_t at = 0; at < kv->rows; at += tile.rows) {
                tile = tile_at(kv, at, kv->rows);
                attend_tile(kv, tile, tile_seen(kv, tile, a->first[t], a->end[t]), &s);
            }
            for (size_t j = 0; j < kv->value_dim; j++) s.out[j] /= s.sum;
        }
}

static void attend_decode(const hk_attend_decode *a) {
    const hk_kv_sequence *kv = &a->kv;
    kv_tile tile;
    for (size_t at = a->from, place = 0; at < a->to; at += tile.rows, place += a->tile_stride) {
        tile = tile_at(kv, at, a->to);
        for (size_t h = 0; h < kv->kv_heads * a->group; h++) {
            query s = new_query(kv, a->q + h * kv->key_dim, h / a->group, a->scale, a->out + place + h * kv->value_dim);
            attend_tile(kv, tile, (lane_range){tile.lane, tile.lane + tile.rows}, &s);
            a->max[place + h] = s.max, a->sum[place + h] = s.sum;
        }
    }
}

static void combine_partials(const float *max, const float *sum, size_t stride, const float *values,
                             size_t values_stride, size_t n, size_t heads, size_t value_dim, float *y) {
    for (size_t h = 0; h < heads; h++, y += value_dim) {
        float top = max[h], total = sum[h];
        for (size_t j = 0; j < value_dim; j++) y[j] = values[h * value_dim + j];
        for (size_t i = 1; i < n; i++) {
            const float *v = values + i * values_stride + h * value_dim;
            float old_scale, new_scale;
            online_softmax_rescale(&top, max[i * stride + h], &old_scale, &new_scale);
            total = total * old_scale + sum[i * stride + h] * new_scale;
            for (size_t j = 0; j < value_dim; j++) y[j] = y[j] * old_scale + v[j] * new_scale;
        }
        for (size_t j = 0; j < value_dim; j++) y[j] /= total;
    }
}

/* ---- Mamba heads ---- */

static void conv_silu(const hk_conv *a) {
    const size_t past = a->taps - 1;
    for (size_t c = 0; c < a->channels; c++) {
        const float *w = a->weight + c * a->taps;
        float *state = a->next + c;
        for (size_t j = 0; j < past; j++) state[j * a->state_stride] = a->state[j * a->state_stride + c];
        for (size_t t = 0; t < a->tokens; t++) {
            const float now = a->u[t * a->u_stride + c];
            float sum = a->bias ? a->bias[c] : 0;
            for (size_t j = 0; j < past; j++) sum += w[j] * state[j * a->state_stride];
            sum += w[past] * now;
            for (size_t j = 0; j + 1 < past; j++) state[j * a->state_stride] = state[(j + 1) * a->state_stride];
            if (past > 0) state[(past - 1) * a->state_stride] = now;
            a->out[t * a->out_stride + c] = silu(sum);
        }
    }
}

static void scan(const hk_scan *a) {
    for (size_t c = 0; c < a->channels; c++) {
        float *h = a->next + c * a->states;
        for (size_t n = 0; n < a->states; n++) h[n] = a->h[c * a->states + n];
        const float *rate = a->a + c * a->states;
        for (size_t t = 0; t < a->tokens; t++) {
            const float *b = a->b + t * a->bc_stride, *out = a->c + t * a->bc_stride;
            const float u = a->u[t * a->u_stride + c];
            const float delta = softplus(a->dt[t * a->dt_stride + c] + a->dt_bias[c]);
            float y = 0;
            for (size_t n = 0; n < a->states; n++) {
                h[n] = expf(delta * rate[n]) * h[n] + delta * u * b[n];
                y += h[n] * out[n];
            }
            a->y[t * a->y_stride + c] = (y + a->d[c] * u) * silu(a->gate[t * a->gate_stride + c]);
        }
    }
}

static uint64_t read_all(const void *p, size_t n, size_t apart) {
    const uint8_t *bytes = p;
    const size_t runs = apart > 0 ? HK_STREAMS : 1;
    uint64_t sum = 0, word;
    for (size_t i = 0; i < n; i += sizeof word)
        for (size_t r = 0; r < runs; r++) {
            memcpy(&word, bytes + r * apart + i, sizeof word);
            sum += word;
        }
    return sum;
}

static uint32_t int8_rate(size_t rounds) {
    const volatile int8_t weights[4] = {5, 7, 9, 11}, values[4] = {3, 2, 1, 4};
    int32_t sum[4] = {0};
    for (size_t n = rounds * (HK_ROUND / 4); n > 0; n--)
        for (int i = 0; i < 4; i++) sum[i] = (int32_t)((uint32_t)sum[i] + (uint32_t)(weights[i] * values[i]));
    return (uint32_t)sum[0] + (uint32_t)sum[1] + (uint32_t)sum[2] + (uint32_t)sum[3];
}

static float float_rate(size_t rounds) {
    const volatile float factor = 0.5f;
    float sum[4] = {0};
    for (size_t n = rounds * (HK_ROUND / 4); n > 0; n--)
        for (int i = 0; i < 4; i++) sum[i] = sum[i] * factor + 1;
    return sum[0] + sum[1] + sum[2] + sum[3];
}

const hk_kernels *hk_scalar(void) {
    static const hk_kernels table = {
        .name = "scalar",
        .matmul = matmul,
        .gemv = NULL,
        .quantize = quantize,
        .rms_norm = rms_norm,
        .fuse = fuse,
        .rope = rope,
        .to_f16 = to_f16,
        .attend_prefill = attend_prefill,
        .attend_decode = attend_decode,
        .combine_partials = combine_partials,
        .conv_silu = conv_silu,
        .scan = scan,
        .silu_mul = silu_mul,
        .relu2 = relu2,
        .read = read_all,
        .int8_rate = int8_rate,
        .float_rate = float_rate,
    };
    return &table;
}

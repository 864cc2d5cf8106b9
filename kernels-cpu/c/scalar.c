/* The plain reference of every kernel: what each one means, without a thought for speed. It runs on any CPU, and the
 * tests hold the others against it. */
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

/* That of row `lane` of `lanes` interleaved ones; in ggml's order of the only one. */
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

static float score(const hk_attend *a, const float *q, const void *k) {
    float s = 0;
    for (size_t j = 0; j < a->key_dim; j++) s += q[j] * kv_value(a->type, k, j);
    return s * a->scale;
}

/* Adds what has the maximum `more`: the factors of what was there, and of what is added. */
static void online_softmax_rescale(float *max, float more, float *keep, float *add) {
    const float most = more > *max ? more : *max;
    *keep = *max == most ? 1 : expf(*max - most);
    *add = more == most ? 1 : expf(more - most);
    *max = most;
}

/* one tile: rows at .. at + rows, for query head h of token t */
static void attend_tile(const hk_attend *a, size_t at, size_t rows, size_t t, size_t h, float *max, float *sum,
                        float *out) {
    const float *q = a->q + t * a->q_stride + h * a->key_dim;
    const size_t head = h / a->group;
    float weights[HK_ATTEND_ROWS], most = -INFINITY, total = 0, keep, add;
    const void *values[HK_ATTEND_ROWS];
    const hk_rows *run = a->runs;
    for (size_t r = 0, row = at; r < rows; r++, row++) {
        for (; row >= run->rows; run++) row -= run->rows;
        values[r] = kv_at(a->type, run->v, head * run->v_head_stride + row * a->value_dim);
        const int seen = at + r < a->prefix || (at + r >= a->first[t] && at + r < a->end[t]);
        weights[r] =
            seen ? score(a, q, kv_at(a->type, run->k, head * run->k_head_stride + row * a->key_dim)) : -INFINITY;
        most = fmaxf(most, weights[r]);
    }
    for (size_t r = 0; r < rows; r++) {
        weights[r] = weights[r] == -INFINITY ? 0 : expf(weights[r] - most);
        total += weights[r];
    }
    online_softmax_rescale(max, most, &keep, &add);
    *sum = *sum * keep + total * add;
    for (size_t j = 0; j < a->value_dim; j++) {
        float v = 0;
        for (size_t r = 0; r < rows; r++) v += weights[r] * kv_value(a->type, values[r], j);
        out[j] = out[j] * keep + v * add;
    }
}

static void attend(const hk_attend *a) {
    const size_t heads = a->kv_heads * a->group;
    for (size_t t = 0; t < a->tokens; t++)
        for (size_t h = 0; h < heads; h++) {
            float *max = a->max + t * heads + h, *sum = a->sum + t * heads + h;
            float *out = a->out + t * a->out_stride + h * a->value_dim;
            for (size_t at = a->from, rows; at < a->to; at += rows) {
                rows = tile_rows(a, at);
                if (at == a->from || a->tile_stride > 0) {
                    *max = -INFINITY, *sum = 0;
                    for (size_t j = 0; j < a->value_dim; j++) out[j] = 0;
                }
                attend_tile(a, at, rows, t, h, max, sum, out);
                max += a->tile_stride, sum += a->tile_stride, out += a->tile_stride;
            }
        }
}

static void combine_partials(const float *max, const float *sum, size_t stride, const float *values,
                             size_t values_stride, size_t n, size_t heads, size_t value_dim, float *y) {
    for (size_t h = 0; h < heads; h++, y += value_dim) {
        float most = max[h], total = sum[h];
        for (size_t j = 0; j < value_dim; j++) y[j] = values[h * value_dim + j];
        for (size_t i = 1; i < n; i++) {
            const float *v = values + i * values_stride + h * value_dim;
            float keep, add;
            online_softmax_rescale(&most, max[i * stride + h], &keep, &add);
            total = total * keep + sum[i * stride + h] * add;
            for (size_t j = 0; j < value_dim; j++) y[j] = y[j] * keep + v[j] * add;
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
    static const hk_kernels table = {"scalar", matmul, NULL,     quantize,         rms_norm,  fuse,
                                     rope,     to_f16, attend,   combine_partials, conv_silu, scan,
                                     silu_mul, relu2,  read_all, int8_rate,        float_rate};
    return &table;
}

/* Products of some tables, which may be emulated: against the scalar reference, and their bits against each other's.
 * TABLES is a list of TABLE(function). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "half.h"
#include "types.h"

#define TABLE(name) const hk_kernels *name(void);
TABLES
#undef TABLE

static uint64_t state = 88172645463325252u;

static uint32_t rnd(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 16);
}

/* random blocks with scales and minima of ordinary size */
static void fill(hk_type type, uint8_t *w, size_t blocks) {
    for (size_t b = 0; b < blocks; b++, w += type_bytes(type)) {
        for (size_t i = 0; i < type_bytes(type); i++) w[i] = (uint8_t)rnd();
        for (size_t i = 0; i < HK_LANES; i++) {
            const uint16_t half = (uint16_t)(0x2c00 + rnd() % 0x400 + (rnd() & 0x8000));
            if (scale_bytes(type) == 1)
                w[i] = (uint8_t)(113 + rnd() % 12);
            else
                memcpy(w + 2 * i, &half, sizeof half);
            if (has_min(type)) memcpy(w + HK_LANES * 2 + 2 * i, &half, sizeof half);
        }
    }
}

static void *room(size_t bytes) {
    void *p = malloc(bytes + 16);
    if (!p) abort();
    return p;
}

static int failures;

/* One shape, by `matmul` of every table and, of few tokens, by `gemv`. */
static void check(const hk_kernels *const *tables, size_t n, hk_type type, size_t tokens, int accumulate) {
    const size_t rows = 8 * (1 + rnd() % 3), blocks = 1 + rnd() % 11, cols = HK_BLOCK * blocks;
    const size_t all = HK_STREAMS * rows, some = tokens > HK_FEW_TOKENS ? all - rnd() % 8 : all,
                 stride = all + rnd() % 5;
    const size_t run = rows / HK_LANES * blocks * type_bytes(type), values = tokens * stride;
    uint8_t *bytes = room(HK_STREAMS * run), *w = bytes + 1 + rnd() % 3;
    fill(type, w, HK_STREAMS * rows / HK_LANES * blocks);
    float *x = room(tokens * cols * sizeof *x), *d = room(2 * tokens * blocks * sizeof *d),
          *few_d = d + tokens * blocks;
    int8_t *q = room(2 * tokens * cols), *few_q = q + tokens * cols;
    int32_t *offset = room(2 * tokens * blocks * sizeof *offset), *few_offset = offset + tokens * blocks;
    for (size_t i = 0; i < tokens * cols; i++) x[i] = (float)((int)(rnd() % 4001) - 2000) / 1000;
    hk_scalar()->quantize(x, tokens * cols, q, d, offset);
    for (size_t t = 0; t < tokens; t++)
        hk_interleave(q + t * cols, d + t * blocks, offset + t * blocks, blocks, tokens, few_q + 4 * t, few_d + t,
                      few_offset + t);
    const hk_act by_token = {x, cols, q, d, offset}, few = {x, cols, few_q, few_d, few_offset};

    float *want = room(values * sizeof *want), *got = room(values * sizeof *got), *first = room(values * sizeof *first);
    for (size_t i = 0; i < values; i++) want[i] = 0.25f * (float)(i % 7);
    hk_scalar()->matmul(type, w, some, cols, &by_token, tokens, want, stride, accumulate);
    for (size_t k = 0; k < 2 * n; k++) {
        const hk_kernels *table = tables[k / 2];
        if (k % 2 == 1 && tokens > HK_FEW_TOKENS) continue;
        for (size_t i = 0; i < values; i++) got[i] = 0.25f * (float)(i % 7);
        if (k % 2 == 0) {
            table->matmul(type, w, some, cols, &by_token, tokens, got, stride, accumulate);
        } else {
            const void *streams[HK_STREAMS];
            float *y[HK_STREAMS];
            for (size_t s = 0; s < HK_STREAMS; s++) streams[s] = w + s * run, y[s] = got + s * rows;
            table->gemv(type, streams, rows, cols, 192, &few, tokens, y, stride, accumulate);
        }
        size_t wrong = 0;
        while (wrong < values && fabsf(got[wrong] - want[wrong]) <= 8e-5f * (float)cols) wrong++;
        if (k == 0) memcpy(first, got, values * sizeof *got);
        const int other_bits = memcmp(first, got, values * sizeof *got) != 0;
        if (wrong == values && !other_bits) continue;
        printf("%s %s, type %d, %zu tokens x %zu rows x %zu columns: ", table->name, k % 2 ? "gemv" : "matmul", type,
               tokens, some, cols);
        if (wrong < values)
            printf("value %zu is %g, not %g\n", wrong, got[wrong], want[wrong]);
        else
            printf("other bits than %s\n", tables[0]->name);
        failures++;
    }
    free(bytes), free(x), free(d), free(q), free(offset), free(want), free(got), free(first);
}

int main(void) {
#define TABLE(name) name(),
    const hk_kernels *const tables[] = { TABLES };
#undef TABLE
    const size_t n = sizeof tables / sizeof *tables;
    for (size_t k = 0; k < n; k++) {
        if (!tables[k]) return printf("table %zu was not built\n", k), 1;
        printf("%s ", tables[k]->name);
    }
#define PACKED(_, name, ...) HK_##name##X8,
    const hk_type types[] = {HK_QUANTIZED_TYPES(PACKED, _)};
#undef PACKED
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (size_t tokens = 1; tokens <= 16 && failures < 20; tokens++)
            for (int round = 0; round < 4; round++) check(tables, n, types[i], tokens, round % 2);
    printf(failures ? "\n%d failures\n" : "agree\n", failures);
    return failures != 0;
}

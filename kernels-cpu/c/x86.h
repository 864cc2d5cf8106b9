/* The kernels of every x86 table: the bodies in vector/ on eight lanes, and products with quantized matrices. The file
 * that includes this may define
 *   HK_DPBUSD(sum, u, s)  adds to each 32-bit lane its four products of unsigned and signed bytes; the integers are the
 *                         same as without it, so the results are bit-identical
 *   HK_DPBUSD_WIDE        the same on 512 bits
 *   HK_LOOKUP32(i, t)     looks up the low five bits of each byte of i in the 32 bytes of t
 *   HK_LOOKUP64(i, t)     the low six, in 64 bytes
 *   TILE_TOKENS           tokens of a tile of packed matrices on 256 bits */
#include <math.h>

#ifndef TILE_TOKENS
#define TILE_TOKENS 5
#endif

#include "half.h"
#include "simd_avx2.h"
#include "tiles.h"
#include "types.h"

#include "vector/wide-inl.h"

#include "vector/math-inl.h"

#include "vector/attention-inl.h"
#include "vector/attention_prefill-inl.h"
#include "vector/attention_decode-inl.h"
#include "vector/elementwise-inl.h"
#include "vector/float_matmul-inl.h"
#include "vector/ssm-inl.h"

#include "quant_x86-inl.h"
#include "block_x86-inl.h"
#include "packed_x86-inl.h"
#ifdef HK_DPBUSD_WIDE
#include "packed_x86_512-inl.h"
#endif
#include "gemm_x86-inl.h"
#include "gemv_x86-inl.h"

#include "vector/table-inl.h"

/* ---- read bandwidth ---- */

HK_INLINE uint64_t read_runs(const uint8_t *p, size_t n, size_t runs, size_t apart) {
    __m256i s[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t i = 0; i < n; i += 128)
        for (size_t r = 0; r < runs; r++)
            for (int j = 0; j < 4; j++)
                s[j] = _mm256_add_epi64(s[j], _mm256_loadu_si256((const __m256i *)(p + r * apart + i + 32 * j)));
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)lanes, _mm256_add_epi64(_mm256_add_epi64(s[0], s[1]), _mm256_add_epi64(s[2], s[3])));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

static uint64_t read_all(const void *p, size_t n, size_t apart) {
    return apart > 0 ? read_runs(p, n, HK_STREAMS, apart) : read_runs(p, n, 1, 0);
}

/* ---- arithmetic from registers ---- */

/* RATE_CHAINS: enough to hide the latency of a step */
#ifdef HK_DPBUSD_WIDE
#define RATE_BYTES 64
#define RATE_CHAINS 12
#define RATE_STEP(sum, w, a) HK_DPBUSD_WIDE(sum, w, a)
typedef __m512i rate_sum;
#else
#define RATE_BYTES 32
typedef __m256i rate_sum;
#ifdef HK_DPBUSD
#define RATE_CHAINS 12
#define RATE_STEP(sum, w, a) HK_DPBUSD(sum, w, a)
#else
#define RATE_CHAINS 8
#define RATE_STEP(sum, w, a) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)))
#endif
#endif

static uint32_t int8_rate(size_t rounds) {
    rate_sum sum[RATE_CHAINS], a, w;
    memset(&a, 3, sizeof a), memset(&w, 5, sizeof w);
#pragma GCC unroll 12
    for (int i = 0; i < RATE_CHAINS; i++) sum[i] = a;
    for (size_t n = rounds * (HK_ROUND / RATE_BYTES / RATE_CHAINS); n > 0; n--)
#pragma GCC unroll 12
        for (int i = 0; i < RATE_CHAINS; i++) {
            OPT_BARRIER(a); /* each chain multiplies again */
            sum[i] = RATE_STEP(sum[i], w, a);
        }
    uint32_t all = 0;
#pragma GCC unroll 12
    for (int i = 0; i < RATE_CHAINS; i++) {
        uint32_t lanes[RATE_BYTES / 4];
        memcpy(lanes, &sum[i], sizeof lanes);
        all += lanes[0];
    }
    return all;
}

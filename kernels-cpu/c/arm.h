/* The kernels of every Arm table: the bodies in vector/ on eight lanes, and products with quantized matrices. The file
 * that includes this may define
 *   HK_SDOT  if there are dot-product instructions: four products of bytes are added to each 32-bit lane
 *   HK_MMLA  if there are matrix instructions too: two rows of eight bytes by two others, added to four lanes
 * All of them compute the same integers, so the results are bit-identical. */
#include <math.h>

#include "half.h"
#include "simd_neon.h"
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

#include "quant_arm-inl.h"
#include "block_arm-inl.h"
#include "packed_arm-inl.h"
#include "gemm_arm-inl.h"

#include "vector/table-inl.h"

#include "gemv_arm-inl.h"

/* ---- read bandwidth ---- */

HK_INLINE uint64_t read_runs(const uint8_t *p, size_t n, size_t runs, size_t apart) {
    uint64x2_t s[4] = {vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0)};
    for (size_t i = 0; i < n; i += 64)
        for (size_t r = 0; r < runs; r++)
            for (int j = 0; j < 4; j++)
                s[j] = vaddq_u64(s[j], vreinterpretq_u64_u8(vld1q_u8(p + r * apart + i + 16 * j)));
    return vaddvq_u64(vaddq_u64(vaddq_u64(s[0], s[1]), vaddq_u64(s[2], s[3])));
}

static uint64_t read_all(const void *p, size_t n, size_t apart) {
    return apart > 0 ? read_runs(p, n, HK_STREAMS, apart) : read_runs(p, n, 1, 0);
}

/* ---- arithmetic from registers ---- */

#if defined(HK_MMLA)
typedef int32x4_t rate_sum;
#define RATE_STEP(sum, w, a) vmmlaq_s32(sum, w, a)
#define RATE_MACS 32
#elif defined(HK_SDOT)
typedef int32x4_t rate_sum;
#define RATE_STEP(sum, w, a) vdotq_s32(sum, w, a)
#define RATE_MACS 16
#else
typedef int16x8_t rate_sum;
#define RATE_STEP(sum, w, a) vmlal_high_s8(sum, w, a)
#define RATE_MACS 8
#endif

static uint32_t int8_rate(size_t rounds) {
    enum { CHAINS = 16 };
    rate_sum sum[CHAINS];
    int8x16_t a = vdupq_n_s8(3), w = vdupq_n_s8(5);
    memset(sum, 0, sizeof sum);
    for (; rounds > 0; rounds--)
        for (int k = 0; k < HK_ROUND / RATE_MACS / CHAINS; k++) UNROLL
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" : "+w"(a)); /* each chain multiplies again */
        sum[i] = RATE_STEP(sum[i], w, a);
    }
    for (int i = 1; i < CHAINS; i++) sum[0] += sum[i];
    return (uint32_t)sum[0][0];
}

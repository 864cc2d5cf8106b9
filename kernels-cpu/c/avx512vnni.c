/* AVX2 with AVX-512's 32 registers, broadcast operands and VNNI; 512-bit vectors where they are faster. */
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)

#define HK_DPBUSD _mm256_dpbusd_epi32
#define HK_DPBUSD_WIDE _mm512_dpbusd_epi32
#define TILE_TOKENS 6 /* there are twice as many registers */

#include "x86.h"

const hk_kernels *hk_avx512vnni(void) {
    static const hk_kernels table = HK_TABLE("avx512vnni");
    return &table;
}

#else

#include "hymba_kernels.h"

const hk_kernels *hk_avx512vnni(void) { return NULL; }

#endif

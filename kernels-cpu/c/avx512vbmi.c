/* avx512vnni.c with VBMI's byte look-up in tables of 32 and 64. */
#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512VBMI__)

#define HK_DPBUSD _mm256_dpbusd_epi32
#define HK_DPBUSD_WIDE _mm512_dpbusd_epi32
#define HK_LOOKUP32 _mm256_permutexvar_epi8
#define HK_LOOKUP64 _mm512_permutexvar_epi8
#define TILE_TOKENS 6

#include "x86.h"

const hk_kernels *hk_avx512vbmi(void) {
    static const hk_kernels table = HK_TABLE("avx512vbmi");
    return &table;
}

#else

#include "hymba_kernels.h"

const hk_kernels *hk_avx512vbmi(void) { return NULL; }

#endif

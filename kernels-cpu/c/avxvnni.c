/* AVX2 and AVX-VNNI. */
#ifdef __AVXVNNI__

#define HK_DPBUSD _mm256_dpbusd_avx_epi32

#include "x86.h"

const hk_kernels *hk_avxvnni(void) {
    static const hk_kernels table = HK_TABLE("avxvnni");
    return &table;
}

#else

#include "hymba_kernels.h"

const hk_kernels *hk_avxvnni(void) { return NULL; }

#endif

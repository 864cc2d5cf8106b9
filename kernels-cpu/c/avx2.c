/* AVX2, FMA and F16C. */
#ifdef __AVX2__

#include "x86.h"

const hk_kernels *hk_avx2(void) {
    static const hk_kernels table = HK_TABLE("avx2");
    return &table;
}

#else

#include "hymba_kernels.h"

const hk_kernels *hk_avx2(void) { return NULL; }

#endif

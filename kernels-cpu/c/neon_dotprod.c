/* Advanced SIMD with the instructions that multiply and add four bytes. */
#if defined(__ARM_FEATURE_DOTPROD) && defined(__AARCH64EL__)

#define HK_SDOT

#include "arm.h"

const hk_kernels *hk_neon_dotprod(void) {
    static const hk_kernels table = HK_TABLE("neon_dotprod");
    return &table;
}

#else

#include "hymba_kernels.h"

const hk_kernels *hk_neon_dotprod(void) { return NULL; }

#endif

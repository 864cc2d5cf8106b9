/* Advanced SIMD with dot-product instructions (FEAT_DotProd). */
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

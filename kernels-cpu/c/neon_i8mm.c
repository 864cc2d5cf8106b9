/* Advanced SIMD with dot-product and matrix instructions (FEAT_DotProd, FEAT_I8MM). */
#if defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_DOTPROD) && defined(__AARCH64EL__)

#define HK_SDOT
#define HK_MMLA

#include "arm.h"

const hk_kernels *hk_neon_i8mm(void) {
    static const hk_kernels table = HK_TABLE("neon_i8mm");
    return &table;
}

#else

#include "hymba_kernels.h"

const hk_kernels *hk_neon_i8mm(void) { return NULL; }

#endif

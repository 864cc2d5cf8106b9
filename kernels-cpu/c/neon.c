/* Advanced SIMD, which every 64-bit Arm CPU has. */
#if defined(__ARM_NEON) && defined(__AARCH64EL__)

#include "arm.h"

const hk_kernels *hk_neon(void) {
    static const hk_kernels table = HK_TABLE("neon");
    return &table;
}

#else

#include "hymba_kernels.h"

const hk_kernels *hk_neon(void) { return NULL; }

#endif

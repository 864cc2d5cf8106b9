/* AVX-512 and AVX-VNNI without a CPU that has them: SIMDe's plain C stands in for the instructions. Included before all
 * else. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#define OPT_BARRIER(x) (void)(x)

#ifdef EMULATE_AVXVNNI
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32
#else
#define __AVX512F__ 1
#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
#define __AVX512VBMI__ 1

/* What SIMDe lacks. */
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#undef _mm512_cvtph_ps
#undef _mm512_cvtepi32_ps
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps

static inline simde__m512 emulated_maskz_loadu_ps(unsigned mask, const float *p) {
    float v[16];
    for (int i = 0; i < 16; i++) v[i] = mask >> i & 1 ? p[i] : 0;
    return simde_mm512_loadu_ps(v);
}
static inline void emulated_mask_storeu_ps(float *p, unsigned mask, simde__m512 x) {
    float v[16];
    simde_mm512_storeu_ps(v, x);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) p[i] = v[i];
}
static inline simde__m512 emulated_cvtph_ps(simde__m256i halves) {
    float v[16];
    _mm256_storeu_ps(v, _mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
    _mm256_storeu_ps(v + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
    return simde_mm512_loadu_ps(v);
}
static inline simde__m512 emulated_cvtepi32_ps(simde__m512i x) {
    int32_t v[16];
    float y[16];
    simde_mm512_storeu_si512(v, x);
    for (int i = 0; i < 16; i++) y[i] = (float)v[i];
    return simde_mm512_loadu_ps(y);
}
#endif

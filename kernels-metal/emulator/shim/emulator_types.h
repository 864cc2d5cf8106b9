// The emulator's half type: stored in 16 bits, computed as float.
#pragma once
#define SHIM_FN

struct half {
    uint16_t bits;
    half() = default;
    explicit half(float v) : bits(from_float(v)) {}
    operator float() const { return to_float(bits); }

    static float to_float(uint16_t h) {
        const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
        uint32_t word;
        if (exponent == 31) word = sign | 0x7f800000 | fraction << 13;
        else if (exponent > 0) word = sign | (exponent + 112) << 23 | fraction << 13;
        else {
            const float small = float(fraction) * 0x1p-24f;
            return sign ? -small : small;
        }
        float v;
        std::memcpy(&v, &word, 4);
        return v;
    }

    static uint16_t from_float(float v) {
        uint32_t word;
        std::memcpy(&word, &v, 4);
        const uint16_t sign = uint16_t(word >> 16 & 0x8000);
        const uint32_t magnitude = word & 0x7fffffff;
        if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);  // NaN
        if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00); // rounds to infinity
        if (magnitude < 0x38800000) {                                // below the smallest normal half: steps of 2^-24
            return uint16_t(sign | uint16_t(std::nearbyint(std::fabs(v) * 0x1p24f)));
        }
        const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1); // ties to even
        return uint16_t(sign | ((rounded >> 13) - (112u << 10)));
    }
};

/// Byte n of a word as a float.
template <int n>
inline float shim_byte(uint32_t word) {
    return float(word >> (8 * n) & 255);
}

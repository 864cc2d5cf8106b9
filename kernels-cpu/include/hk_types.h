/* The table of quantized types: the kernels of every instruction set are generated from it, and tests compare Rust's
 * `DType` and codec, and Metal's `Format`, with it. docs/architecture.md describes what else a new type needs.
 *
 * X(arg, name, id, bytes of the scale, has a minimum, has fifth bits, bits of a code, zero point, levels)
 *
 * A block of 32 values is a scale d (a half float; of one byte: e, d = 2^(e-128)), a minimum m (a half float), the
 * fifth bits of 5-bit codes, and codes of 4 or 8 bits. A value is d * level + m. Without a table of levels, the level
 * is the code minus the zero point; codes of 8 bits are signed bytes. Adding the zero point makes every level
 * unsigned. */
#ifndef HYMBA_TYPE_TABLE_H
#define HYMBA_TYPE_TABLE_H

#define HK_QUANTIZED_TYPES(X, arg)                    \
    X(arg, Q8_0, 3, 2, 0, 0, 8, 128, NULL)            \
    X(arg, Q4_0, 4, 2, 0, 0, 4, 8, NULL)              \
    X(arg, Q4_1, 5, 2, 1, 0, 4, 0, NULL)              \
    X(arg, Q5_0, 6, 2, 0, 1, 4, 16, NULL)             \
    X(arg, Q5_1, 7, 2, 1, 1, 4, 0, NULL)              \
    X(arg, IQ4_NL, 8, 2, 0, 0, 4, 128, IQ4_NL_LEVELS) \
    X(arg, MXFP4, 9, 1, 0, 0, 4, 12, MXFP4_LEVELS)

/* Levels of 4-bit codes; those of MXFP4, 4-bit floats, are doubled. */
#define HK_IQ4_NL_LEVELS {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}
#define HK_MXFP4_LEVELS {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

#endif

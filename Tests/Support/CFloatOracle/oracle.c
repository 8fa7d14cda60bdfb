#include "CFloatOracle.h"
#include <fenv.h>
#include <math.h>
#include <string.h>

#pragma STDC FENV_ACCESS ON

bool oracle_is_usable(void) {
#if defined(__x86_64__)
    return true;
#else
    return false;
#endif
}

static const int modes[4] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};

static uint8_t flags_seen(void) {
    int seen = fetestexcept(FE_ALL_EXCEPT);
    return (seen & FE_INEXACT ? 1 : 0) | (seen & FE_UNDERFLOW ? 2 : 0) | (seen & FE_OVERFLOW ? 4 : 0)
        | (seen & FE_DIVBYZERO ? 8 : 0) | (seen & FE_INVALID ? 16 : 0);
}

static float single(uint64_t bits) { uint32_t low = (uint32_t)bits; float f; memcpy(&f, &low, 4); return f; }
static double twice(uint64_t bits) { double d; memcpy(&d, &bits, 8); return d; }
static uint64_t bits_of_single(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
static uint64_t bits_of_double(double d) { uint64_t bits; memcpy(&bits, &d, 8); return bits; }

// Operands and results are volatile so that the operation stays between the two looks at the environment.
uint64_t oracle_32(int operation, uint64_t a, uint64_t b, uint64_t c, int mode, uint8_t *flags) {
    volatile float x = single(a), y = single(b), z = single(c), r = 0;
    volatile double wide = 0;
    volatile int64_t i = (int64_t)a;
    volatile uint64_t u = a;
    fesetround(modes[mode & 3]);
    feclearexcept(FE_ALL_EXCEPT);
    switch (operation) {
    case oracle_add: r = x + y; break;
    case oracle_sub: r = x - y; break;
    case oracle_mul: r = x * y; break;
    case oracle_div: r = x / y; break;
    case oracle_sqrt: r = sqrtf(x); break;
    case oracle_fma: r = fmaf(x, y, z); break;
    case oracle_to_other_width: wide = x; break;
    case oracle_round_to_integral: r = rintf(x); break;
    case oracle_from_i64: r = (float)i; break;
    case oracle_from_u64: r = (float)u; break;
    }
    *flags = flags_seen();
    fesetround(FE_TONEAREST);
    return operation == oracle_to_other_width ? bits_of_double(wide) : bits_of_single(r);
}

uint64_t oracle_64(int operation, uint64_t a, uint64_t b, uint64_t c, int mode, uint8_t *flags) {
    volatile double x = twice(a), y = twice(b), z = twice(c), r = 0;
    volatile float narrow = 0;
    volatile int64_t i = (int64_t)a;
    volatile uint64_t u = a;
    fesetround(modes[mode & 3]);
    feclearexcept(FE_ALL_EXCEPT);
    switch (operation) {
    case oracle_add: r = x + y; break;
    case oracle_sub: r = x - y; break;
    case oracle_mul: r = x * y; break;
    case oracle_div: r = x / y; break;
    case oracle_sqrt: r = sqrt(x); break;
    case oracle_fma: r = fma(x, y, z); break;
    case oracle_to_other_width: narrow = (float)x; break;
    case oracle_round_to_integral: r = rint(x); break;
    case oracle_from_i64: r = (double)i; break;
    case oracle_from_u64: r = (double)u; break;
    }
    *flags = flags_seen();
    fesetround(FE_TONEAREST);
    return operation == oracle_to_other_width ? bits_of_single(narrow) : bits_of_double(r);
}

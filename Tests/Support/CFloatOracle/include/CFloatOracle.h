// The host's own floating-point unit, rounding as asked and telling which exceptions it saw.
// Only for tests; C, because Swift has no access to the floating-point environment and folds constants without it.
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum oracle_operation {
    oracle_add, oracle_sub, oracle_mul, oracle_div, oracle_sqrt, oracle_fma,
    oracle_to_other_width, oracle_round_to_integral, oracle_from_i64, oracle_from_u64,
};

/// Whether this host judges underflow after rounding, as RISC-V does.
bool oracle_is_usable(void);
/// `mode` as in frm, 0 to 3. The flags come back as in fflags. The conversions take the integer's bits as `a`.
uint64_t oracle_32(int operation, uint64_t a, uint64_t b, uint64_t c, int mode, uint8_t *flags);
uint64_t oracle_64(int operation, uint64_t a, uint64_t b, uint64_t c, int mode, uint8_t *flags);

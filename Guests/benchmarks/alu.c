// Arithmetic in registers: xorshift and multiply-add, no memory.
#include "benchmark.h"
const char name[] = "alu";

uint64_t work(void) {
    uint64_t x = 0x9e3779b97f4a7c15, sum = 0;
    for (uint32_t i = 0; i < 27000000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum = sum * 6364136223846793005u + x;
        sum ^= (uint64_t)i + (sum >> 32);
        if (sum & 1) sum += 3; else x += sum;
    }
    return sum;
}

// Memory: fill, copy by words, copy by bytes, and sum, over two buffers of 4 MiB.
//
// The buffers do not lie a power of two apart: that pattern is the worst case of one particular emulator's translation cache and
// would say nothing about the rest.
#include "benchmark.h"
const char name[] = "mem";

enum { words = 4 << 17, bytes = words * 8, gap = 7 * 4096 };
static uint64_t area[2 * words + gap / 8];

uint64_t work(void) {
    uint64_t *from = area, *to = area + words + gap / 8, sum = 0;
    for (uint64_t round = 0; round < 16; round++) {
        for (int i = 0; i < words; i++) from[i] = (uint64_t)i * 0x0101010101010101u + round;
        for (int i = 0; i < words; i += 8) {
            uint64_t a = from[i], b = from[i + 1], c = from[i + 2], d = from[i + 3];
            uint64_t e = from[i + 4], f = from[i + 5], g = from[i + 6], h = from[i + 7];
            to[i] = a, to[i + 1] = b, to[i + 2] = c, to[i + 3] = d;
            to[i + 4] = e, to[i + 5] = f, to[i + 6] = g, to[i + 7] = h;
        }
        volatile uint8_t *target = (volatile uint8_t *)from;
        const uint8_t *source = (const uint8_t *)to;
        for (int i = 0; i < bytes / 4; i++) target[i] = source[i + 1];
        for (int i = 0; i < words; i++) sum = (sum << 1 | sum >> 63) + (to[i] ^ from[i]);
    }
    return sum;
}

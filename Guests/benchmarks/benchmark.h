// What the benchmark programs share: each defines `name` and `work`, and `benchmark_main` times it with the machine's own
// counters, prints one line, and powers off:
//   alu instructions=539000123 nanoseconds=1234500 checksum=123456
// Where a machine's minstret does not count instructions (QEMU's does not), the number means nothing.
#ifndef BENCHMARK_H
#define BENCHMARK_H
#include <stdint.h>

extern const char name[];
uint64_t work(void);

static inline void put(char byte) {
    while (!(*(volatile uint8_t *)0x10000005 & 0x20)) {}
    *(volatile uint8_t *)0x10000000 = (uint8_t)byte;
}
static inline void put_text(const char *text) { while (*text) put(*text++); }
static inline void put_number(uint64_t number) {
    char digits[20];
    int count = 0;
    do { digits[count++] = (char)('0' + number % 10); } while (number /= 10);
    while (count) put(digits[--count]);
}
static inline uint64_t instructions(void) {
    uint64_t value;
    __asm__ volatile("csrr %0, minstret" : "=r"(value));
    return value;
}

void benchmark_main(void) {
    volatile uint64_t *timer = (volatile uint64_t *)0x0200bff8;
    uint64_t start = *timer, before = instructions();
    uint64_t checksum = work();
    uint64_t after = instructions(), end = *timer;
    put_text(name);
    put_text(" instructions=");
    put_number(after - before);
    put_text(" nanoseconds=");
    put_number((end - start) * 100);
    put_text(" checksum=");
    put_number(checksum);
    put_text("\r\n");
    *(volatile uint32_t *)0x100000 = 0x5555;
}
#endif

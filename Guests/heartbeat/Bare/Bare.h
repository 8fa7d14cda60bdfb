// What Swift has no words for: volatile accesses, a few instructions, and the addresses the linker script defines.
#ifndef BARE_H
#define BARE_H
#include <stdint.h>

static inline uint8_t bare_load8(uint64_t address) { return *(volatile uint8_t *)address; }
static inline uint32_t bare_load32(uint64_t address) { return *(volatile uint32_t *)address; }
static inline uint64_t bare_load64(uint64_t address) { return *(volatile uint64_t *)address; }
static inline void bare_store8(uint64_t address, uint8_t value) { *(volatile uint8_t *)address = value; }
static inline void bare_store32(uint64_t address, uint32_t value) { *(volatile uint32_t *)address = value; }
static inline void bare_store64(uint64_t address, uint64_t value) { *(volatile uint64_t *)address = value; }

/// Sleeps until an enabled interrupt is pending; it is not taken.
static inline void bare_wait(void) { __asm__ volatile("wfi" ::: "memory"); }
/// Of the interrupts, only the timer's ends a wait.
static inline void bare_enable_timer(void) { __asm__ volatile("csrw mie, %0" ::"r"(0x80L)); }

/// One word guards the console; 0 is free.
static inline void bare_lock(uint64_t address) {
    while (__atomic_exchange_n((uint32_t *)address, 1, __ATOMIC_ACQUIRE)) {}
}
static inline void bare_unlock(uint64_t address) { __atomic_store_n((uint32_t *)address, 0, __ATOMIC_RELEASE); }

extern char image_end[];
extern uint32_t go;
static inline uint64_t bare_image_end(void) { return (uint64_t)image_end; }
/// Lets the other harts leave their waiting loop in Start.S.
static inline void bare_release_harts(void) { __atomic_store_n(&go, 0x676f21, __ATOMIC_RELEASE); }
static inline void bare_hold_harts(void) { __atomic_store_n(&go, 0, __ATOMIC_RELEASE); }
#endif

// A mixture: CRC-32, a sieve, quicksort, records with strings, indirect calls and division, and atomic operations.
#include "benchmark.h"
const char name[] = "mix";

static uint32_t table[256];
static uint8_t flags[1000000];
static uint32_t values[100000];

static uint64_t state = 88172645463325252u;
static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static uint32_t crc(const uint8_t *bytes, int count) {
    uint32_t value = ~0u;
    for (int i = 0; i < count; i++) value = table[(value ^ bytes[i]) & 255] ^ value >> 8;
    return ~value;
}

static uint64_t sieve(void) {
    uint64_t count = 0;
    for (int i = 0; i < 1000000; i++) flags[i] = 1;
    for (int i = 2; i < 1000000; i++) {
        if (!flags[i]) continue;
        count++;
        for (int j = 2 * i; j < 1000000; j += i) flags[j] = 0;
    }
    return count;
}

static void sort(uint32_t *low, uint32_t *high) {
    while (low < high) {
        uint32_t pivot = low[(high - low) / 2], *i = low, *j = high;
        while (i <= j) {
            while (*i < pivot) i++;
            while (*j > pivot) j--;
            if (i <= j) {
                uint32_t swapped = *i;
                *i++ = *j;
                *j-- = swapped;
            }
        }
        if (j - low < high - i) {
            sort(low, j);
            low = i;
        } else {
            sort(i, high);
            high = j;
        }
    }
}

struct record {
    char text[24];
    int kind;
    int64_t amount;
    struct record *following;
};
static struct record records[64];

static int64_t divide(struct record *record, int64_t by) { return record->amount / (by | 1) + record->amount % 7; }
static int64_t measure(struct record *record, int64_t by) {
    int length = 0;
    while (record->text[length]) length++;
    return length * by;
}
static int64_t compare(struct record *record, int64_t by) {
    const char *a = record->text, *b = record->following->text;
    while (*a && *a == *b) a++, b++;
    return (*a - *b) ^ by;
}
static int64_t (*volatile const operations[3])(struct record *, int64_t) = {divide, measure, compare};

static uint64_t walk(int rounds) {
    uint64_t sum = 0;
    for (int i = 0; i < 64; i++) {
        struct record *record = &records[i];
        uint64_t random = next();
        int length = (int)(random % 20) + 2;
        for (int k = 0; k < length; k++) record->text[k] = (char)('a' + (k < 6 ? k : (int)((random >> k) & 15)));
        record->text[length] = 0;
        record->kind = (int)(random >> 40) % 3;
        record->amount = (int64_t)random;
        record->following = &records[(i * 7 + 1) & 63];
    }
    for (int round = 0; round < rounds; round++) {
        struct record *record = &records[round & 63];
        for (int i = 0; i < 64; i++) {
            sum += (uint64_t)operations[record->kind](record, (int64_t)(sum & 1023));
            record = record->following;
        }
    }
    return sum;
}

static uint64_t atomics(int rounds) {
    static uint64_t counter, lock;
    uint64_t sum = 0;
    for (int i = 0; i < rounds; i++) {
        while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {}
        sum += __atomic_fetch_add(&counter, (uint64_t)i, __ATOMIC_RELAXED);
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    }
    return sum;
}

uint64_t work(void) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int k = 0; k < 8; k++) value = value & 1 ? 0xedb88320u ^ value >> 1 : value >> 1;
        table[i] = value;
    }
    for (int round = 0; round < 2; round++) {
        sum += sieve();
        for (int i = 0; i < 4; i++) sum = sum * 31 + crc(flags, 1000000);
        for (int i = 0; i < 100000; i++) values[i] = (uint32_t)next();
        sort(values, values + 99999);
        sum = sum * 31 + crc((uint8_t *)values, 400000);
        sum = sum * 31 + walk(6000);
        sum = sum * 31 + atomics(500000);
    }
    return sum;
}

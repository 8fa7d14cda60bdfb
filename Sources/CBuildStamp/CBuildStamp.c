#include "CBuildStamp.h"

struct build_stamp {
    char mark[16];
    uint32_t state_first, state_last;
    char version[24];
};

__attribute__((used, section("sidestep_stamp"))) static const volatile struct build_stamp stamp = {
    "sidestep-stamp:", 1, 4, "0.1.0"};

const char *build_stamp_version(void) { return (const char *)stamp.version; }
uint32_t build_stamp_state_first(void) { return stamp.state_first; }
uint32_t build_stamp_state_last(void) { return stamp.state_last; }

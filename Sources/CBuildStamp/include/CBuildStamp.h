// What a build says it is: one record in a section of its own, read while the program runs and never folded into code,
// so that it can be found in the program's file by its mark. Tests make a program of another version by writing there.
#ifndef C_BUILD_STAMP_H
#define C_BUILD_STAMP_H

#include <stdint.h>

/// The program's version, for people: `0.1.0`.
const char *build_stamp_version(void);
/// The oldest and the newest form of a guest's state, as it goes from process to process, that this build reads and writes.
uint32_t build_stamp_state_first(void);
uint32_t build_stamp_state_last(void);

#endif

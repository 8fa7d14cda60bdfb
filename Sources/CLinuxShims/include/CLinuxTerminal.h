// Terminals: modes that must be put back whatever happens, pseudo-terminals, and who has a file open.
#ifndef C_LINUX_TERMINAL_H
#define C_LINUX_TERMINAL_H

#include <stddef.h>

/// Bytes of `struct termios`.
size_t shim_termios_size(void);
/// tcgetattr(3) into `modes` (shim_termios_size bytes).
int shim_terminal_get_modes(int terminal, void *modes);
/// tcsetattr(3), at once.
int shim_terminal_set_modes(int terminal, const void *modes);
/// Changes `modes` as cfmakeraw(3) does, but leaves output processing as it is when `keep_output` is not 0.
void shim_terminal_make_raw(void *modes, int keep_output);

/// Has `modes` put back on `terminal` when the process exits or dies of a signal that can be caught. One terminal per
/// process; the signals are those whose handling nobody has changed, and faults (whose handlers run afterwards).
int shim_terminal_guard(int terminal, const void *modes);
/// Puts the modes back now, once; does nothing when nothing is guarded. Safe in a signal handler.
void shim_terminal_restore(void);
/// Forgets the terminal without touching it: somebody else has it now.
void shim_terminal_unguard(void);

/// Opens a pseudo-terminal, both sides close-on-exec; `path` gets the name of the other side (at least 64 bytes).
int shim_pseudo_terminal_open(int *master, int *slave, char *path, size_t path_size);

/// inotify(7), non-blocking: tells of each open and close of `path`.
int shim_open_watch(const char *path);
/// Takes what happened since the last call: adds opens, and closes, to the counts. -1 with errno on failure.
int shim_open_watch_read(int watch, int *opened, int *closed);

#endif

#define _GNU_SOURCE
#include "CLinuxTerminal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <termios.h>
#include <unistd.h>

size_t shim_termios_size(void) { return sizeof(struct termios); }

int shim_terminal_get_modes(int terminal, void *modes) { return tcgetattr(terminal, modes); }

int shim_terminal_set_modes(int terminal, const void *modes) { return tcsetattr(terminal, TCSANOW, modes); }

void shim_terminal_make_raw(void *modes, int keep_output) {
    struct termios *raw = modes;
    tcflag_t output = raw->c_oflag;
    cfmakeraw(raw);
    if (keep_output) raw->c_oflag = output;
    raw->c_cc[VMIN] = 1;
    raw->c_cc[VTIME] = 0;
}

// What a signal handler needs has to be in C's static memory: it may run at any instruction.
static atomic_int guarded;  // 1 while `guarded_modes` are to be put back
static int guarded_terminal;
static struct termios guarded_modes;

static const int polite_signals[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM};
static const int fault_signals[] = {SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS};
static struct sigaction before[NSIG];

void shim_terminal_restore(void) {
    if (atomic_exchange(&guarded, 0)) tcsetattr(guarded_terminal, TCSANOW, &guarded_modes);
}

static void restore_and_pass_on(int signal, siginfo_t *info, void *context) {
    (void)context;
    int error = errno;
    shim_terminal_restore();
    sigaction(signal, &before[signal], NULL);
    // A fault comes again by itself when the handler returns, with everything as it was. Anything else is sent again; it
    // arrives as soon as it is no longer blocked.
    int is_fault = info->si_code > 0 && (signal == SIGILL || signal == SIGBUS || signal == SIGFPE || signal == SIGSEGV);
    if (!is_fault) raise(signal);
    errno = error;
}

static void guard_signal(int signal, int only_default) {
    struct sigaction old;
    if (sigaction(signal, NULL, &old) < 0 || old.sa_handler == SIG_IGN || old.sa_sigaction == restore_and_pass_on) return;
    if (only_default && old.sa_handler != SIG_DFL) return;
    before[signal] = old;
    // SIGTTOU is blocked meanwhile, so that a background process is not stopped by restoring. SA_ONSTACK: the fault may
    // be an overflow of the stack.
    struct sigaction action = {.sa_sigaction = restore_and_pass_on, .sa_flags = SA_ONSTACK | SA_SIGINFO};
    sigfillset(&action.sa_mask);
    sigaction(signal, &action, NULL);
}

int shim_terminal_guard(int terminal, const void *modes) {
    static atomic_int registered;
    atomic_store(&guarded, 0);
    guarded_terminal = terminal;
    memcpy(&guarded_modes, modes, sizeof guarded_modes);
    atomic_store(&guarded, 1);
    if (!atomic_exchange(&registered, 1) && atexit(shim_terminal_restore) != 0) return -1;
    for (size_t i = 0; i < sizeof polite_signals / sizeof *polite_signals; i++) guard_signal(polite_signals[i], 1);
    for (size_t i = 0; i < sizeof fault_signals / sizeof *fault_signals; i++) guard_signal(fault_signals[i], 0);
    return 0;
}

void shim_terminal_unguard(void) { atomic_store(&guarded, 0); }

int shim_pseudo_terminal_open(int *master, int *slave, char *path, size_t path_size) {
    int leader = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (leader < 0) return -1;
    int follower = -1;
    if (grantpt(leader) == 0 && unlockpt(leader) == 0 && ptsname_r(leader, path, path_size) == 0)
        follower = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (follower < 0) {
        int error = errno;
        close(leader);
        errno = error;
        return -1;
    }
    *master = leader;
    *slave = follower;
    return 0;
}

int shim_open_watch(const char *path) {
    int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watch < 0) return -1;
    if (inotify_add_watch(watch, path, IN_OPEN | IN_CLOSE) < 0) {
        int error = errno;
        close(watch);
        errno = error;
        return -1;
    }
    return watch;
}

int shim_open_watch_read(int watch, int *opened, int *closed) {
    _Alignas(struct inotify_event) char events[4096];
    for (;;) {
        ssize_t count = read(watch, events, sizeof events);
        if (count < 0) return errno == EAGAIN ? 0 : -1;
        for (char *at = events; at < events + count;) {
            struct inotify_event *event = (struct inotify_event *)at;
            if (event->mask & IN_OPEN) (*opened)++;
            if (event->mask & IN_CLOSE) (*closed)++;
            at += sizeof *event + event->len;
        }
    }
}

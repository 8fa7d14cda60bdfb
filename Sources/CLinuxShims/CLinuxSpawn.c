#define _GNU_SOURCE
#include "CLinuxShims.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct program {
    const char *path;
    char *const *words, *const *environment;
    const int *pairs;
    int pair_count;
    /// NULL where they stay as they are.
    const char *priority, *directory;
    int new_session;
    /// For an orphan: of the process between, which starts it.
    char *stack;
    /// Written by the new processes, which share our memory.
    volatile pid_t process;
    volatile int failure;
};

enum { stack_size = 16 << 10 };

/// The new process runs `body` while the calling thread waits until it is another program or has ended, as by vfork(2), but with a
/// stack of its own. It may call the kernel and nothing else.
static pid_t start(int (*body)(void *), char *stack, struct program *program) {
    return clone(body, stack + stack_size, CLONE_VM | CLONE_VFORK | SIGCHLD, program);
}

/// What failed, if it comes so far.
static int attempt(const struct program *program) {
    struct sigaction action;
    for (int number = 1; number < 65; number++) {
        // Our handlers must not run over there; what we ignore stays ignored, as posix_spawn has it.
        if (sigaction(number, NULL, &action) != 0 || action.sa_handler == SIG_IGN || action.sa_handler == SIG_DFL) continue;
        memset(&action, 0, sizeof action);
        action.sa_handler = SIG_DFL;
        sigaction(number, &action, NULL);
    }
    // It must not go on as one that the kernel never takes, which its parent may be: then nobody could be.
    if (program->priority != NULL) {
        int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (file < 0 && errno != EACCES) return errno;  // who may not write it has never written it
        if (file >= 0 && write(file, program->priority, strlen(program->priority)) < 0) return errno;
        if (file >= 0) close(file);
    }
    if (program->new_session && setsid() < 0) return errno;
    if (program->directory != NULL && chdir(program->directory) < 0) return errno;
    for (int i = 0; i < program->pair_count; i++)
        if (dup2(program->pairs[2 * i], program->pairs[2 * i + 1]) < 0) return errno;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(program->path, program->words, program->environment);
    return errno;
}

static int become(void *argument) {
    struct program *program = argument;
    program->failure = attempt(program);
    _exit(127);
}

static int start_and_end(void *argument) {
    struct program *program = argument;
    program->process = start(become, program->stack, program);
    if (program->process < 0) program->failure = errno;
    _exit(0);
}

static void reap(pid_t process) {
    while (waitpid(process, NULL, 0) < 0 && errno == EINTR) continue;
}

int shim_spawn_successor(const char *path, char *const *words, char *const *environment, const int *pairs, int pair_count,
                         const char *priority, const char *directory, int new_session, int as_orphan) {
    _Alignas(16) char stacks[2][stack_size];
    struct program program = {.path = path, .words = words, .environment = environment, .pairs = pairs,
                              .pair_count = pair_count, .priority = priority, .directory = directory, .new_session = new_session,
                              .stack = stacks[1]};
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t child = start(as_orphan ? start_and_end : become, stacks[0], &program);
    if (child < 0) program.failure = errno;
    else if (as_orphan || program.failure != 0) reap(child);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (program.failure == 0) return as_orphan ? program.process : child;
    errno = program.failure;
    return -1;
}

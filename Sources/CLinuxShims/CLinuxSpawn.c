#define _GNU_SOURCE
#include "CLinuxShims.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/// The new process until it is another program. It shares our memory and our thread waits for it (vfork(2)): it may call the
/// kernel and nothing else. Answers what failed, if it comes back.
static int become(const char *path, char *const *words, char *const *environment, const int *pairs, int pair_count,
                  const char *priority) {
    struct sigaction action;
    for (int number = 1; number < 65; number++) {
        // Our handlers must not run over there; what we ignore stays ignored, as posix_spawn has it.
        if (sigaction(number, NULL, &action) != 0 || action.sa_handler == SIG_IGN || action.sa_handler == SIG_DFL) continue;
        memset(&action, 0, sizeof action);
        action.sa_handler = SIG_DFL;
        sigaction(number, &action, NULL);
    }
    // Failure is nobody's loss: the order is then the kernel's.
    int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (file >= 0) {
        if (write(file, priority, strlen(priority)) < 0) errno = 0;
        close(file);
    }
    for (int i = 0; i < pair_count; i++)
        if (dup2(pairs[2 * i], pairs[2 * i + 1]) < 0) return errno;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(path, words, environment);
    return errno;
}

int shim_spawn_first_to_go(const char *path, char *const *words, char *const *environment, const int *pairs, int pair_count,
                           const char *priority) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    volatile int failure = 0;
    pid_t child = vfork();
    if (child == 0) {
        failure = become(path, words, environment, pairs, pair_count, priority);
        _exit(127);
    }
    int error = child < 0 ? errno : failure;
    if (child > 0 && error != 0) {
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR) continue;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0) return child;
    errno = error;
    return -1;
}

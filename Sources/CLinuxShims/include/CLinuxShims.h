// What Swift cannot import: macros with arguments, variadic functions, and system calls without a wrapper.
// Nothing here decides anything; each function is one call and returns what the kernel returned.
#ifndef C_LINUX_SHIMS_H
#define C_LINUX_SHIMS_H

// Only headers that look the same with and without _GNU_SOURCE: Swift reads them beside its own Glibc module.
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include "CLinuxTerminal.h"

/// Most descriptors one message may carry here (the kernel's own limit is 253).
#define SHIM_DESCRIPTORS_MAX 64

/// sendmsg(2) with `descriptorCount` descriptors attached (0 attaches nothing). MSG_NOSIGNAL is always set.
ssize_t shim_send_with_descriptors(int socket, const void *bytes, size_t byteCount, const int *descriptors,
                                   size_t descriptorCount, int flags);

/// sendmsg(2) of up to 1024 pieces without descriptors. MSG_NOSIGNAL is always set.
ssize_t shim_send_pieces(int socket, const struct iovec *pieces, size_t pieceCount, int flags);

/// recvmsg(2) with room for `*descriptorCount` descriptors (at most SHIM_DESCRIPTORS_MAX); on return `*descriptorCount` is how many
/// arrived, all close-on-exec. `*truncated` is 1 if the kernel had to drop ancillary data (MSG_CTRUNC).
ssize_t shim_receive_with_descriptors(int socket, const struct iovec *pieces, size_t pieceCount, int *descriptors,
                                      size_t *descriptorCount, int *truncated, int flags);

// Constants that Glibc shows only to _GNU_SOURCE; the values are the kernel's ABI (checked in CLinuxShims.c).
static const unsigned int SHIM_MFD_CLOEXEC = 1, SHIM_MFD_ALLOW_SEALING = 2, SHIM_MFD_HUGETLB = 4;
static const int SHIM_F_ADD_SEALS = 1033, SHIM_F_GET_SEALS = 1034;
static const int SHIM_F_SEAL_SEAL = 1, SHIM_F_SEAL_SHRINK = 2, SHIM_F_SEAL_GROW = 4, SHIM_F_SEAL_WRITE = 8;
static const int SHIM_F_OFD_GETLK = 36, SHIM_F_OFD_SETLK = 37;
static const int SHIM_F_SETPIPE_SZ = 1031, SHIM_F_GETPIPE_SZ = 1032;
static const unsigned int SHIM_SPLICE_F_MOVE = 1, SHIM_SPLICE_F_NONBLOCK = 2, SHIM_SPLICE_F_MORE = 4, SHIM_SPLICE_F_GIFT = 8;
static const int SHIM_SEEK_DATA = 3, SHIM_SEEK_HOLE = 4;
static const int SHIM_IFF_TAP = 2, SHIM_IFF_NO_PI = 0x1000, SHIM_IFF_VNET_HDR = 0x4000;
static const int SHIM_MADV_POPULATE_READ = 22, SHIM_MADV_POPULATE_WRITE = 23;
static const int SHIM_FALLOC_FL_KEEP_SIZE = 1, SHIM_FALLOC_FL_PUNCH_HOLE = 2, SHIM_FALLOC_FL_ZERO_RANGE = 16;

int shim_eventfd(void);
/// epoll(7): one entry is an event mask and a token; the layout is the kernel's (packed on x86-64), so C copies it.
struct shim_ready {
    uint32_t events;
    uint64_t token;
};
int shim_epoll_create(void);
/// operation: 1 add, 2 delete, 3 modify.
int shim_epoll_control(int epoll, int operation, int descriptor, uint32_t events, uint64_t token);
/// At most 64 entries.
int shim_epoll_wait(int epoll, struct shim_ready *ready, int count, int timeout_milliseconds);
int shim_set_thread_name(const char *name);
int shim_pipe(int ends[2]);
int shim_fallocate(int descriptor, int mode, long long offset, long long byteCount);
/// cachestat(2): how many pages of a part of a file are in memory; -1 with ENOSYS before Linux 6.5.
long long shim_resident_pages(int descriptor, unsigned long long offset, unsigned long long byteCount);
/// fork(2); only while the process has one thread.
int shim_fork(void);
/// prctl(PR_SET_CHILD_SUBREAPER): orphaned descendants become this process's children.
int shim_become_subreaper(void);
int shim_memfd_create(const char *name, unsigned int flags);
ssize_t shim_vmsplice(int pipe, const struct iovec *pieces, size_t pieceCount, unsigned int flags);
/// splice(2) from a pipe, at no offset of either.
ssize_t shim_splice(int from, int to, size_t byteCount, unsigned int flags);
int shim_pidfd_open(int process);
int shim_pidfd_send_signal(int pidfd, int signal);
int shim_pidfd_getfd(int pidfd, int descriptor);
/// The flag POSIX_SPAWN_SETSID, and posix_spawn_file_actions_addchdir_np(3) on a `posix_spawn_file_actions_t`.
#define SHIM_POSIX_SPAWN_SETSID 0x80
int shim_spawn_change_directory(void *actions, const char *path);
/// As posix_spawn(3) with `pairs` of descriptors (here, there) to dup2(2), an empty signal mask, and a session and a directory of its own
/// where they are asked for; and with what posix_spawn cannot do: the new process has `priority`, unless it is NULL, as its
/// oom_score_adj before it runs anything of its own, and as an orphan it has no parent here but whoever takes orphans. Answers its
/// number, or -1 with errno.
int shim_spawn_successor(const char *path, char *const *words, char *const *environment, const int *pairs, int pair_count,
                         const char *priority, const char *directory, int new_session, int as_orphan);
/// renameat2(2) with RENAME_EXCHANGE: two names change places in one step.
int shim_exchange_names(const char *one, const char *other);
int shim_userfaultfd(int flags);
long shim_futex(uint32_t *word, int operation, uint32_t value, const struct timespec *timeout);
int shim_thread_id(void);
int shim_current_processor(void);
/// A thread may run where the calling one may.
void shim_share_processors(int thread);
/// A set of processors, as sched_setaffinity(2) has it.
struct shim_processors {
    unsigned long words[16];
};
/// On how many processors the calling thread may run.
int shim_processor_count(void);
/// Has the calling thread run on none of those processors, if there are others: true, and `before` says where it might run.
int shim_avoid_processors(const int *processors, int count, struct shim_processors *before);
/// Has a thread run on `processor` alone, if it may: true, and `before` says where it might run. Thread 0 is the calling one.
int shim_keep_to_processor(int thread, int processor, struct shim_processors *before);
/// Where a thread may run; 0 is the calling one.
void shim_allow_processors(int thread, const struct shim_processors *processors);
/// How a thread gets a processor, as sched_getattr(2) has it.
struct shim_scheduling {
    uint64_t words[6];
};
/// Has a thread run in turns of so many nanoseconds: true, and `before` says what it had. False when the kernel (before 6.12) or the
/// thread's policy has no turns. Threads and processes that it makes do not have it from it. Thread 0 is the calling one.
int shim_set_turn(int thread, uint64_t nanoseconds, struct shim_scheduling *before);
/// Has a thread get a processor before every thread of ordinary priority, and of a lower `priority` than this (1 to 99), by turns with its
/// like: true, and `before` says what it had. False when it may not, or has neither ordinary priority now nor a lower one from this
/// function. Threads and processes that it makes do not have it from it. Thread 0 is the calling one.
int shim_set_urgent(int thread, unsigned priority, struct shim_scheduling *before);
/// A thread has a processor as it had before one of these two.
void shim_set_scheduling(int thread, const struct shim_scheduling *scheduling);

int shim_fcntl_int(int descriptor, int command, int argument);
int shim_fcntl_lock(int descriptor, int command, struct flock *lock);
int shim_ioctl_pointer(int descriptor, unsigned long request, void *argument);
int shim_ioctl_int(int descriptor, unsigned long request, unsigned long argument);

/// Blocks `count` signals in the calling thread and answers a signalfd(2) for them, non-blocking and close-on-exec.
int shim_signalfd(const int *signals, int count);
/// The number of the next signal of a signalfd, or -1.
int shim_signalfd_next(int descriptor);
/// From now on each of these signals, those that wait included, is sent on to the process of a pidfd, as the signal `as`. Unblocks them
/// in the calling thread, whose handler does it.
int shim_pass_on_signals(const int *signals, int count, int pidfd, int as);

/// Effective user of the process at the other end of a unix socket (SO_PEERCRED); -1 with errno on failure.
int shim_peer_credentials(int socket, int *process, unsigned int *user, unsigned int *group);

/// The TUN_F_* flags that match what the interface `name` offers its own host: checksums and segments left to the guest. Asked
/// through any socket of the interface's network namespace. -1 with errno on failure.
int shim_tap_offloads(int socket, const char *name);
/// sendmsg(2), saying that `process` sends it (SCM_CREDENTIALS of unix(7); of another's, root's right).
ssize_t shim_send_as(int socket, const void *bytes, size_t byteCount, int process);

static inline int shim_wait_exited(int status) { return WIFEXITED(status); }
static inline int shim_wait_exit_status(int status) { return WEXITSTATUS(status); }
static inline int shim_wait_signal(int status) { return WTERMSIG(status); }

// Request numbers of ioctl(2), which are macros with arguments.
unsigned long shim_tunsetiff(void);
unsigned long shim_tungetiff(void);
unsigned long shim_tunsetoffload(void);
unsigned long shim_tunsetvnethdrsz(void);
unsigned long shim_tungetvnethdrsz(void);
unsigned long shim_uffdio_api(void);
unsigned long shim_uffdio_register(void);
unsigned long shim_uffdio_unregister(void);
unsigned long shim_uffdio_copy(void);
unsigned long shim_uffdio_zeropage(void);
unsigned long shim_uffdio_wake(void);

#endif

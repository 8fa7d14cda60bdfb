#define _GNU_SOURCE
#include "CLinuxShims.h"

#include <errno.h>
#include <linux/ethtool.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

ssize_t shim_send_with_descriptors(int socket, const void *bytes, size_t byteCount, const int *descriptors,
                                   size_t descriptorCount, int flags) {
    if (descriptorCount > SHIM_DESCRIPTORS_MAX) {
        errno = EINVAL;
        return -1;
    }
    struct iovec piece = {.iov_base = (void *)bytes, .iov_len = byteCount};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int) * SHIM_DESCRIPTORS_MAX)];
    } control;
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (descriptorCount > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptorCount);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * descriptorCount);
        memcpy(CMSG_DATA(header), descriptors, sizeof(int) * descriptorCount);
    }
    return sendmsg(socket, &message, flags | MSG_NOSIGNAL);
}

ssize_t shim_send_pieces(int socket, const struct iovec *pieces, size_t pieceCount, int flags) {
    struct msghdr message = {.msg_iov = (struct iovec *)pieces, .msg_iovlen = pieceCount > 1024 ? 1024 : pieceCount};
    return sendmsg(socket, &message, flags | MSG_NOSIGNAL);
}

ssize_t shim_receive_with_descriptors(int socket, const struct iovec *pieces, size_t pieceCount, int *descriptors,
                                      size_t *descriptorCount, int *truncated, int flags) {
    size_t room = *descriptorCount;
    if (room > SHIM_DESCRIPTORS_MAX) room = SHIM_DESCRIPTORS_MAX;
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int) * SHIM_DESCRIPTORS_MAX)];
    } control;
    struct msghdr message = {.msg_iov = (struct iovec *)pieces, .msg_iovlen = pieceCount};
    if (room > 0) {
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * room);
    }
    *descriptorCount = 0;
    *truncated = 0;
    ssize_t received = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
    if (received < 0) return received;
    if (message.msg_flags & MSG_CTRUNC) *truncated = 1;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t arrived = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < arrived; i++) {
            int descriptor;
            memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof descriptor);
            if (*descriptorCount < room) {
                descriptors[(*descriptorCount)++] = descriptor;
            } else {  // CMSG_SPACE is rounded up, so one more than asked for may fit
                close(descriptor);
                *truncated = 1;
            }
        }
    }
    return received;
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
_Static_assert(MFD_CLOEXEC == 1 && MFD_ALLOW_SEALING == 2 && MFD_HUGETLB == 4, "memfd flags");
_Static_assert(F_ADD_SEALS == 1033 && F_GET_SEALS == 1034, "seal commands");
_Static_assert(F_SEAL_SEAL == 1 && F_SEAL_SHRINK == 2 && F_SEAL_GROW == 4 && F_SEAL_WRITE == 8, "seals");
_Static_assert(F_OFD_GETLK == 36 && F_OFD_SETLK == 37, "open file description locks");
_Static_assert(F_SETPIPE_SZ == 1031 && F_GETPIPE_SZ == 1032, "pipe size");
_Static_assert(SPLICE_F_MOVE == 1 && SPLICE_F_NONBLOCK == 2 && SPLICE_F_MORE == 4 && SPLICE_F_GIFT == 8, "splice");
_Static_assert(SEEK_DATA == 3 && SEEK_HOLE == 4, "sparse files");
_Static_assert(MADV_POPULATE_READ == 22 && MADV_POPULATE_WRITE == 23, "madvise");
_Static_assert(FALLOC_FL_KEEP_SIZE == 1 && FALLOC_FL_PUNCH_HOLE == 2 && FALLOC_FL_ZERO_RANGE == 16, "fallocate");

_Static_assert(IFF_TAP == 2 && IFF_NO_PI == 0x1000 && IFF_VNET_HDR == 0x4000, "tap flags");

int shim_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }

int shim_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC); }

int shim_fallocate(int descriptor, int mode, long long offset, long long byteCount) {
    return fallocate(descriptor, mode, offset, byteCount);
}

long long shim_resident_pages(int descriptor, unsigned long long offset, unsigned long long byteCount) {
    unsigned long long range[2] = {offset, byteCount}, statistics[5];  // struct cachestat_range, struct cachestat
    if (syscall(451 /* SYS_cachestat on every architecture */, descriptor, range, statistics, 0) < 0) { return -1; }
    return (long long)statistics[0];
}

int shim_fork(void) { return fork(); }

int shim_become_subreaper(void) { return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); }

int shim_memfd_create(const char *name, unsigned int flags) { return memfd_create(name, flags); }

ssize_t shim_vmsplice(int pipe, const struct iovec *pieces, size_t pieceCount, unsigned int flags) {
    return vmsplice(pipe, pieces, pieceCount, flags);
}

ssize_t shim_splice(int from, int to, size_t byteCount, unsigned int flags) {
    return splice(from, NULL, to, NULL, byteCount, flags);
}

int shim_pidfd_open(int process) { return (int)syscall(SYS_pidfd_open, process, 0); }

int shim_pidfd_send_signal(int pidfd, int signal) {
    return (int)syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0);
}

int shim_pidfd_getfd(int pidfd, int descriptor) { return (int)syscall(SYS_pidfd_getfd, pidfd, descriptor, 0); }

_Static_assert(SHIM_POSIX_SPAWN_SETSID == POSIX_SPAWN_SETSID, "the flag of spawn.h");

int shim_spawn_change_directory(void *actions, const char *path) {
    return posix_spawn_file_actions_addchdir_np(actions, path);
}

int shim_exchange_names(const char *one, const char *other) {
    return renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE);
}

int shim_userfaultfd(int flags) { return (int)syscall(SYS_userfaultfd, flags); }

long shim_futex(uint32_t *word, int operation, uint32_t value, const struct timespec *timeout) {
    return syscall(SYS_futex, word, operation, value, timeout, NULL, 0);
}

int shim_current_processor(void) { return sched_getcpu(); }

int shim_processor_count(void) {
    cpu_set_t processors;
    return sched_getaffinity(0, sizeof processors, &processors) < 0 ? 1 : CPU_COUNT(&processors);
}

void shim_share_processors(int thread) {
    cpu_set_t processors;
    if (sched_getaffinity(0, sizeof processors, &processors) >= 0)
        sched_setaffinity(thread, sizeof processors, &processors);
}

int shim_avoid_processors(const int *processors, int count, struct shim_processors *before) {
    _Static_assert(sizeof(cpu_set_t) <= sizeof *before, "all processors fit");
    cpu_set_t *all = (cpu_set_t *)before, others;
    if (count < 1 || sched_getaffinity(0, sizeof *all, all) < 0) return 0;
    others = *all;
    for (int i = 0; i < count; i++)
        if (processors[i] >= 0 && processors[i] < CPU_SETSIZE) CPU_CLR(processors[i], &others);
    return CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0;
}

int shim_keep_to_processor(int thread, int processor, struct shim_processors *before) {
    cpu_set_t *all = (cpu_set_t *)before, one;
    if (processor < 0 || processor >= CPU_SETSIZE || sched_getaffinity(thread, sizeof *all, all) < 0) return 0;
    if (!CPU_ISSET(processor, all)) return 0;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    return sched_setaffinity(thread, sizeof one, &one) == 0;
}

void shim_allow_processors(int thread, const struct shim_processors *processors) {
    sched_setaffinity(thread, sizeof(cpu_set_t), (const cpu_set_t *)processors);
}

// The first version of sched_setattr(2)'s structure; glibc had none before 2.41.
struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

_Static_assert(sizeof(struct scheduling) == sizeof(struct shim_scheduling), "one structure");

// SCHED_FLAG_RESET_ON_FORK of <linux/sched.h>: threads and processes that this one makes are ordinary.
enum { for_itself_alone = 1 };

static int set_scheduling(int thread, const struct scheduling *scheduling) {
    return syscall(SYS_sched_setattr, thread, scheduling, 0) == 0;
}

static int get_scheduling(int thread, struct scheduling *now) {
    if (syscall(SYS_sched_getattr, thread, now, sizeof *now, 0) < 0) return 0;
    now->size = sizeof *now;
    return 1;
}

static int is_ordinary(const struct scheduling *scheduling) {
    return scheduling->policy == SCHED_OTHER || scheduling->policy == SCHED_BATCH;
}

int shim_set_turn(int thread, uint64_t nanoseconds, struct shim_scheduling *before) {
    struct scheduling now;
    if (!get_scheduling(thread, &now) || !is_ordinary(&now) || now.runtime == 0) return 0;
    memcpy(before, &now, sizeof now);
    now.runtime = nanoseconds;
    now.flags |= for_itself_alone;
    return set_scheduling(thread, &now);
}

int shim_set_urgent(int thread, unsigned priority, struct shim_scheduling *before) {
    struct scheduling now;
    if (!get_scheduling(thread, &now)) return 0;
    // What somebody else has made urgent is left as it is.
    int is_ours = now.policy == SCHED_RR && now.flags & for_itself_alone && now.priority < priority;
    if (!is_ordinary(&now) && !is_ours) return 0;
    memcpy(before, &now, sizeof now);
    struct scheduling urgent = {.size = sizeof urgent, .policy = SCHED_RR, .flags = for_itself_alone, .priority = priority};
    return set_scheduling(thread, &urgent);
}

void shim_set_scheduling(int thread, const struct shim_scheduling *scheduling) {
    struct scheduling wanted;
    memcpy(&wanted, scheduling, sizeof wanted);
    if (set_scheduling(thread, &wanted)) return;
    // Without CAP_SYS_NICE that flag stays.
    wanted.flags |= for_itself_alone;
    set_scheduling(thread, &wanted);
}

int shim_thread_id(void) { return (int)syscall(SYS_gettid); }

int shim_fcntl_int(int descriptor, int command, int argument) { return fcntl(descriptor, command, argument); }

int shim_fcntl_lock(int descriptor, int command, struct flock *lock) { return fcntl(descriptor, command, lock); }

int shim_ioctl_pointer(int descriptor, unsigned long request, void *argument) {
    return ioctl(descriptor, request, argument);
}

int shim_ioctl_int(int descriptor, unsigned long request, unsigned long argument) {
    return ioctl(descriptor, request, argument);
}

int shim_peer_credentials(int socket, int *process, unsigned int *user, unsigned int *group) {
    struct ucred credentials;
    socklen_t size = sizeof credentials;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0) return -1;
    *process = credentials.pid;
    *user = credentials.uid;
    *group = credentials.gid;
    return 0;
}

unsigned long shim_tunsetiff(void) { return TUNSETIFF; }
unsigned long shim_tungetiff(void) { return TUNGETIFF; }
unsigned long shim_tunsetoffload(void) { return TUNSETOFFLOAD; }
unsigned long shim_tunsetvnethdrsz(void) { return TUNSETVNETHDRSZ; }
unsigned long shim_tungetvnethdrsz(void) { return TUNGETVNETHDRSZ; }

int shim_tap_offloads(int socket, const char *name) {
    struct ethtool_value checksums = {.cmd = ETHTOOL_GTXCSUM}, segments = {.cmd = ETHTOOL_GTSO};
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    request.ifr_data = (void *)&checksums;
    if (ioctl(socket, SIOCETHTOOL, &request) < 0) return -1;
    request.ifr_data = (void *)&segments;
    if (ioctl(socket, SIOCETHTOOL, &request) < 0) return -1;
    if (!checksums.data) return 0;
    return TUN_F_CSUM | (segments.data ? TUN_F_TSO4 | TUN_F_TSO6 : 0);
}

ssize_t shim_send_as(int socket, const void *bytes, size_t byteCount, int process) {
    struct iovec piece = {.iov_base = (void *)bytes, .iov_len = byteCount};
    struct ucred credentials = {.pid = process, .uid = geteuid(), .gid = getegid()};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof credentials)];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_CREDENTIALS;
    header->cmsg_len = CMSG_LEN(sizeof credentials);
    memcpy(CMSG_DATA(header), &credentials, sizeof credentials);
    return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}
unsigned long shim_uffdio_api(void) { return UFFDIO_API; }
unsigned long shim_uffdio_register(void) { return UFFDIO_REGISTER; }
unsigned long shim_uffdio_unregister(void) { return UFFDIO_UNREGISTER; }
unsigned long shim_uffdio_copy(void) { return UFFDIO_COPY; }
unsigned long shim_uffdio_zeropage(void) { return UFFDIO_ZEROPAGE; }
unsigned long shim_uffdio_wake(void) { return UFFDIO_WAKE; }

int shim_epoll_create(void) { return epoll_create1(EPOLL_CLOEXEC); }

int shim_epoll_control(int epoll, int operation, int descriptor, uint32_t events, uint64_t token) {
    struct epoll_event event = {.events = events, .data.u64 = token};
    return epoll_ctl(epoll, operation, descriptor, &event);
}

int shim_epoll_wait(int epoll, struct shim_ready *ready, int count, int timeout_milliseconds) {
    struct epoll_event events[64];
    int got = epoll_wait(epoll, events, count < 64 ? count : 64, timeout_milliseconds);
    for (int i = 0; i < got; i++) {
        ready[i].events = events[i].events;
        ready[i].token = events[i].data.u64;
    }
    return got;
}

int shim_set_thread_name(const char *name) { return pthread_setname_np(pthread_self(), name); }

int shim_signalfd(const int *signals, int count) {
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < count; i++) sigaddset(&set, signals[i]);
    int failed = pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (failed) {
        errno = failed;
        return -1;
    }
    return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

int shim_signalfd_next(int descriptor) {
    struct signalfd_siginfo info;
    return read(descriptor, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : -1;
}

static int passed_on_to = -1, passed_on_as;

static void pass_on(int signal) {
    (void)signal;
    int before = errno;
    shim_pidfd_send_signal(passed_on_to, passed_on_as);
    errno = before;
}

int shim_pass_on_signals(const int *signals, int count, int pidfd, int as) {
    passed_on_to = pidfd;
    passed_on_as = as;
    struct sigaction action = {.sa_handler = pass_on, .sa_flags = SA_RESTART};
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < count; i++) {
        if (sigaction(signals[i], &action, NULL) != 0) return -1;
        sigaddset(&set, signals[i]);
    }
    int failed = pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    if (failed) errno = failed;
    return failed ? -1 : 0;
}

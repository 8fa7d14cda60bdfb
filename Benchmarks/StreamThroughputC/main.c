// The least a page can cost: the system calls of the channels and nothing else, on the same kind of memory.
//   stream-throughput-c flip|socket MIB 4k|2m     prints GiB/s, and CPU seconds per GiB of both processes
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, RUN = 512 };

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double cpu(int who) {
    struct rusage u;
    getrusage(who, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static char *memory(size_t size, int huge) {
    // Huge pages are for private memory unless the host says otherwise; small ones stand in a memfd, as a guest's do.
    int file = huge ? -1 : memfd_create("ram", MFD_CLOEXEC);
    if (!huge && (file < 0 || ftruncate(file, size))) die("memfd");
    char *base = mmap(NULL, size + (2 << 20), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    base = (char *)(((uintptr_t)base + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
    int flags = huge ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    if (mmap(base, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, file, 0) == MAP_FAILED) die("mmap");
    if (huge && madvise(base, size, MADV_HUGEPAGE)) die("madvise");
    return base;
}

static void read_all(int fd, void *to, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t n = read(fd, (char *)to + done, count - done);
        if (n <= 0) die("read");
        done += n;
    }
}

static void write_all(int fd, const void *from, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t n = write(fd, (const char *)from + done, count - done);
        if (n <= 0) die("write");
        done += n;
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int flip = !strcmp(argv[1], "flip"), huge = !strcmp(argv[3], "2m");
    size_t size = (size_t)atol(argv[2]) << 20;
    char *source = memory(size, huge);
    for (size_t i = 0; i < size; i += 8) *(uint64_t *)(source + i) = (i / 8) * 0x9e3779b97f4a7c15 | 1;
    int pair[2], ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || pipe(ends)) die("socketpair");
    fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
    int big = 4 << 20;
    for (int i = 0; i < 2; i++) {
        setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &big, sizeof big);
        setsockopt(pair[i], SOL_SOCKET, SO_RCVBUF, &big, sizeof big);
    }
    pid_t child = fork();
    if (child == 0) {
        char *target = memory(size, huge), ready = 1;
        for (size_t i = 0; i < size; i += PAGE) target[i] = 1;
        write_all(pair[1], &ready, 1);
        double used = cpu(RUSAGE_SELF);
        for (size_t at = 0; at < size; at += (size_t)RUN * PAGE) {
            if (flip) {
                uint64_t words[RUN];
                read_all(pair[1], words, sizeof words);
                read_all(ends[0], target + at, (size_t)RUN * PAGE);
            } else {
                struct iovec pieces[2 * RUN], *piece = pieces;
                uint64_t words[RUN];
                size_t left = (size_t)RUN * (PAGE + 8);
                for (int i = 0; i < RUN; i++) {
                    pieces[2 * i] = (struct iovec){&words[i], 8};
                    pieces[2 * i + 1] = (struct iovec){target + at + (size_t)i * PAGE, PAGE};
                }
                while (left > 0) {
                    ssize_t n = readv(pair[1], piece, pieces + 2 * RUN - piece);
                    if (n <= 0) die("readv");
                    left -= n;
                    while (n > 0 && (size_t)n >= piece->iov_len) n -= piece++->iov_len;
                    if (n > 0) piece->iov_base = (char *)piece->iov_base + n, piece->iov_len -= n;
                }
            }
        }
        used = cpu(RUSAGE_SELF) - used;
        write_all(pair[1], &used, sizeof used);
        _exit(0);
    }
    char ready;
    read_all(pair[0], &ready, 1);
    double start = now(), used = cpu(RUSAGE_SELF), there;
    for (size_t at = 0; at < size; at += (size_t)RUN * PAGE) {
        uint64_t words[RUN];
        struct iovec pieces[2 * RUN], *piece = pieces;
        for (int i = 0; i < RUN; i++) words[i] = __builtin_bswap64(at + (size_t)i * PAGE);
        if (flip) {
            write_all(pair[0], words, sizeof words);
            struct iovec run = {source + at, (size_t)RUN * PAGE};
            while (run.iov_len > 0) {
                ssize_t n = vmsplice(ends[1], &run, 1, SPLICE_F_GIFT);
                if (n < 0) die("vmsplice");
                run.iov_base = (char *)run.iov_base + n, run.iov_len -= n;
            }
        } else {
            size_t left = (size_t)RUN * (PAGE + 8);
            for (int i = 0; i < RUN; i++) {
                pieces[2 * i] = (struct iovec){&words[i], 8};
                pieces[2 * i + 1] = (struct iovec){source + at + (size_t)i * PAGE, PAGE};
            }
            while (left > 0) {
                ssize_t n = writev(pair[0], piece, pieces + 2 * RUN - piece);
                if (n < 0) die("writev");
                left -= n;
                while (n > 0 && (size_t)n >= piece->iov_len) n -= piece++->iov_len;
                if (n > 0) piece->iov_base = (char *)piece->iov_base + n, piece->iov_len -= n;
            }
        }
    }
    read_all(pair[0], &there, sizeof there);
    double seconds = now() - start;
    used = cpu(RUSAGE_SELF) - used;
    waitpid(child, NULL, 0);
    double gib = size / (double)(1 << 30);
    printf("c-%s %s %.3f GiB/s %.3f %.3f s/GiB\n", argv[1], argv[3], gib / seconds, used / gib, there / gib);
    return 0;
}

/* Makes system calls on chosen files fail, and the clock wrong. Preloaded into a server (LD_PRELOAD); see faulty_disk.py.
 *
 * The environment variable FAULTS_CONTROL names a control file, which all processes map. A call counts if its
 * kind is armed and the path of its file contains `path` (of calls with two names, the first one). Of the calls that count, those from number `skip` on
 * (from 0) fail, `fails` of them. `clock` is added to the time of day, in seconds; monotonic clocks stay right.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, READ = 4, NAMES = 8 };

struct control {
    volatile int32_t kinds; /* 0: nothing is armed */
    int32_t error;          /* errno of the calls that fail */
    int64_t skip, fails;
    int64_t seen, failed; /* counted here */
    char path[256];
    volatile int64_t clock;
};

static struct control *control;

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("FAULTS_CONTROL");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED)
        control = found;
    close(fd);
}

static int counts(int kind, const char *path)
{
    if (!control || !(control->kinds & kind) || !strstr(path, control->path))
        return 0;
    int64_t number = __atomic_fetch_add(&control->seen, 1, __ATOMIC_SEQ_CST);
    if (number < control->skip || number >= control->skip + control->fails)
        return 0;
    __atomic_fetch_add(&control->failed, 1, __ATOMIC_SEQ_CST);
    errno = control->error;
    return 1;
}

static int fails(int kind, int fd)
{
    char link[64], path[4096];
    if (!control || !(control->kinds & kind))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return counts(kind, path);
}

/* `given` are the parameters with their types, `passed` their names. */
#define WRAPPED(kind, result, name, given, passed)                                                                   \
    result name given                                                                                                \
    {                                                                                                                \
        static result(*real) given;                                                                                  \
        if (!real)                                                                                                   \
            real = (result(*) given)dlsym(RTLD_NEXT, #name);                                                         \
        return fails(kind, fd) ? -1 : real passed;                                                                   \
    }

WRAPPED(WRITE, ssize_t, pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at))
WRAPPED(WRITE, ssize_t, pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at))
WRAPPED(WRITE, ssize_t, write, (int fd, const void *from, size_t size), (fd, from, size))
WRAPPED(WRITE, ssize_t, writev, (int fd, const struct iovec *from, int count), (fd, from, count))
WRAPPED(WRITE, ssize_t, pwritev, (int fd, const struct iovec *from, int count, off_t at), (fd, from, count, at))
WRAPPED(WRITE, ssize_t, pwritev64, (int fd, const struct iovec *from, int count, off64_t at), (fd, from, count, at))
WRAPPED(WRITE, ssize_t, pwritev2, (int fd, const struct iovec *from, int count, off_t at, int flags),
        (fd, from, count, at, flags))
WRAPPED(WRITE, ssize_t, pwritev64v2, (int fd, const struct iovec *from, int count, off64_t at, int flags),
        (fd, from, count, at, flags))
WRAPPED(WRITE, int, ftruncate, (int fd, off_t length), (fd, length))
WRAPPED(WRITE, int, ftruncate64, (int fd, off64_t length), (fd, length))
WRAPPED(SYNC, int, fsync, (int fd), (fd))
WRAPPED(SYNC, int, fdatasync, (int fd), (fd))
WRAPPED(READ, ssize_t, pread, (int fd, void *to, size_t size, off_t at), (fd, to, size, at))
WRAPPED(READ, ssize_t, pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at))
WRAPPED(READ, ssize_t, preadv, (int fd, const struct iovec *to, int count, off_t at), (fd, to, count, at))
WRAPPED(READ, ssize_t, preadv64, (int fd, const struct iovec *to, int count, off64_t at), (fd, to, count, at))
WRAPPED(READ, ssize_t, preadv2, (int fd, const struct iovec *to, int count, off_t at, int flags),
        (fd, to, count, at, flags))
WRAPPED(READ, ssize_t, preadv64v2, (int fd, const struct iovec *to, int count, off64_t at, int flags),
        (fd, to, count, at, flags))

/* Of sendfile the file that is read counts, of copy_file_range both. */
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags)
{
    static ssize_t (*real)(int, off64_t *, int, off64_t *, size_t, unsigned);
    if (!real)
        real = (ssize_t(*)(int, off64_t *, int, off64_t *, size_t, unsigned))dlsym(RTLD_NEXT, "copy_file_range");
    return fails(READ, from) || fails(WRITE, to) ? -1 : real(from, at, to, to_at, size, flags);
}

ssize_t sendfile64(int to, int fd, off64_t *at, size_t count)
{
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real)
        real = (ssize_t(*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64");
    return fails(READ, fd) ? -1 : real(to, fd, at, count);
}

ssize_t sendfile(int to, int fd, off_t *at, size_t count)
{
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real)
        real = (ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile");
    return fails(READ, fd) ? -1 : real(to, fd, at, count);
}

/* Calls that make, move and remove names. */
#define NAMED(result, name, given, passed)                                                                           \
    result name given                                                                                                \
    {                                                                                                                \
        static result(*real) given;                                                                                  \
        if (!real)                                                                                                   \
            real = (result(*) given)dlsym(RTLD_NEXT, #name);                                                         \
        return counts(NAMES, path) ? -1 : real passed;                                                               \
    }

NAMED(int, rename, (const char *path, const char *to), (path, to))
NAMED(int, link, (const char *path, const char *to), (path, to))
NAMED(int, unlink, (const char *path), (path))
NAMED(int, rmdir, (const char *path), (path))
NAMED(int, mkdir, (const char *path, mode_t mode), (path, mode))

#define OPENED(name)                                                                                                 \
    int name(const char *path, int flags, ...)                                                                       \
    {                                                                                                                \
        static int (*real)(const char *, int, mode_t);                                                               \
        va_list more;                                                                                                \
        if (!real)                                                                                                   \
            real = (int (*)(const char *, int, mode_t))dlsym(RTLD_NEXT, #name);                                      \
        va_start(more, flags);                                                                                       \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                                      \
        va_end(more);                                                                                                \
        return flags & O_CREAT && counts(NAMES, path) ? -1 : real(path, flags, mode);                                \
    }

OPENED(open)
OPENED(open64)

int clock_gettime(clockid_t id, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, now);
    if (!code && control && id == CLOCK_REALTIME)
        now->tv_sec += control->clock;
    return code;
}

time_t time(time_t *to)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}

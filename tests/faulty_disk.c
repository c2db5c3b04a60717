/* LD_PRELOAD: system calls that write below given folders fail, or kill the process, at the N-th of them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char folders[8][4096];
static int count, armed, at, code; /* code: an errno, or 0 for SIGKILL */
static FILE *told;                 /* gets a line for each call */

void faulty_disk(const char *watched, const char *log, int number, int what) {
    char *copy = strdup(watched), *rest = copy, *folder;
    while ((folder = strsep(&rest, ":")) && count < 8) snprintf(folders[count++], 4096, "%s", folder);
    free(copy);
    told = fopen(log, "w");
    at = number, code = what, armed = 1;
}

static int below(const char *path) {
    for (int i = 0; path && i < count; i++)
        if (!strncmp(path, folders[i], strlen(folders[i]))) return 1;
    return 0;
}

static const char *of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static int fails(const char *call, const char *path) {
    static __thread int inside;
    if (!armed || inside || !below(path)) return 0;
    inside = 1;
    int here = __sync_sub_and_fetch(&at, 1) == 0; /* threads write at the same time */
    fprintf(told, "%s %s\n", call, path);
    fflush(told);
    if (here && !code) kill(getpid(), SIGKILL);
    if (here) errno = code;
    inside = 0;
    return here;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
#define BY_FD(type, name, parameters, arguments, ...)                                                    \
    type name parameters { REAL(type, name, __VA_ARGS__); char path[4096]; int before = errno;            \
        if (armed && fails(#name, of(fd, path))) return -1; errno = before; return real arguments; }
#define BY_PATH(name, parameters, arguments, first, second, ...)                                         \
    int name parameters { REAL(int, name, __VA_ARGS__);                                                   \
        if (fails(#name, below(first) ? first : second)) return -1; return real arguments; }
#define BY_OPEN(name, parameters, arguments, ...)                                                         \
    int name parameters { REAL(int, name, __VA_ARGS__, ...); va_list list; va_start(list, flags);         \
        mode_t mode = va_arg(list, mode_t); va_end(list);                                                 \
        if ((flags & O_CREAT) && fails(#name, path)) return -1; return real arguments; }

BY_FD(ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n), int, const void *, size_t)
BY_FD(ssize_t, pwrite64, (int fd, const void *from, size_t n, off64_t o), (fd, from, n, o), int, const void *, size_t, off64_t)
BY_FD(ssize_t, sendfile64, (int fd, int in, off64_t *o, size_t n), (fd, in, o, n), int, int, off64_t *, size_t)
BY_FD(ssize_t, copy_file_range, (int in, off64_t *i, int fd, off64_t *o, size_t n, unsigned f), (in, i, fd, o, n, f),
      int, off64_t *, int, off64_t *, size_t, unsigned)
BY_FD(int, fsync, (int fd), (fd), int)
BY_FD(int, fdatasync, (int fd), (fd), int)
BY_FD(int, ftruncate64, (int fd, off64_t n), (fd, n), int, off64_t)
BY_PATH(truncate64, (const char *path, off64_t n), (path, n), path, path, const char *, off64_t)
BY_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path, path, const char *, mode_t)
BY_PATH(rename, (const char *from, const char *to), (from, to), from, to, const char *, const char *)
BY_PATH(link, (const char *from, const char *to), (from, to), from, to, const char *, const char *)
BY_PATH(linkat, (int d, const char *from, int e, const char *to, int f), (d, from, e, to, f), from, to,
        int, const char *, int, const char *, int)
BY_PATH(symlink, (const char *from, const char *to), (from, to), to, to, const char *, const char *)
BY_OPEN(open, (const char *path, int flags, ...), (path, flags, mode), const char *, int)
BY_OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), const char *, int)
BY_OPEN(openat, (int d, const char *path, int flags, ...), (d, path, flags, mode), int, const char *, int)
BY_OPEN(openat64, (int d, const char *path, int flags, ...), (d, path, flags, mode), int, const char *, int)

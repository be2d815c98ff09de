/* Makes the Nth of some system calls fail, or do only a part, in every process that loads it.
   FAULT_CALL: which call. FAULT_AT: which of them, counted from 1 in each process. FAULT_HOW: an errno, or "short".
   FAULT_UNDER: only for files whose path has this in it. FAULT_LOG: a file that gets a line for each fault. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int count;

static int under(const char *path)
{
    const char *wanted = getenv("FAULT_UNDER");
    return !wanted || strstr(path, wanted) != NULL;
}

static int under_fd(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return under(path);
}

/* Return 0: go on; -1: fail with errno set; 1: do a part. */
static int fault(const char *call, int matches)
{
    const char *wanted = getenv("FAULT_CALL"), *how = getenv("FAULT_HOW"), *at = getenv("FAULT_AT");
    if (!wanted || !how || !at || strcmp(wanted, call) || !matches)
        return 0;
    if (__sync_add_and_fetch(&count, 1) != atoi(at))
        return 0;
    const char *log = getenv("FAULT_LOG");
    if (log) {
        FILE *file = fopen(log, "a");
        if (file) {
            fprintf(file, "%s\n", call);
            fclose(file);
        }
    }
    if (!strcmp(how, "short"))
        return 1;
    errno = atoi(how);
    return -1;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) \
        real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    int found = fault("write", under_fd(fd));
    if (found < 0)
        return -1;
    return real(fd, data, found && size > 1 ? size / 2 : size);
}

ssize_t read(int fd, void *data, size_t size)
{
    REAL(ssize_t, read, int, void *, size_t);
    int found = fault("read", under_fd(fd));
    if (found < 0)
        return -1;
    return real(fd, data, found && size > 1 ? (size > 8 ? 3 : 1) : size);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags)
{
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    int found = fault("copy_file_range", under_fd(out));
    if (found < 0)
        return -1;
    return real(in, from, out, to, found && size > 4096 ? 4096 : size, flags);
}

int fsync(int fd)
{
    REAL(int, fsync, int);
    return fault("fsync", under_fd(fd)) < 0 ? -1 : real(fd);
}

int syncfs(int fd)
{
    REAL(int, syncfs, int);
    return fault("fsync", under_fd(fd)) < 0 ? -1 : real(fd);
}

int rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *);
    return fault("rename", under(to)) < 0 ? -1 : real(from, to);
}

int link(const char *from, const char *to)
{
    REAL(int, link, const char *, const char *);
    return fault("link", under(to)) < 0 ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    return fault("mkdir", under(path)) < 0 ? -1 : real(path, mode);
}

int unlink(const char *path)
{
    REAL(int, unlink, const char *);
    return fault("unlink", under(path)) < 0 ? -1 : real(path);
}

/* A disk that fails on request: preloaded into a program (LD_PRELOAD), it lets calls on files below
 * a given path fail, be short, or take their time.
 *
 * MUSTER_DISK_CONTROL names the control file: RULES records of `struct rule`, mapped and shared by
 * all processes, so that a test steers programs that already run and sees how often a rule was met.
 * The Rust side is `muster_tests::disk`; both know the layout. What does not go through the C
 * library (a static program, rustix on raw system calls) is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { RULES = 8, TEXT = 256 };

/* Classes of calls; a rule is for any set of them. */
enum {
    CALL_SYNC = 1 << 0,   /* fsync, fdatasync */
    CALL_WRITE = 1 << 1,  /* write, writev, pwrite, pwritev, fallocate */
    CALL_CUT = 1 << 2,    /* truncate, ftruncate */
    CALL_RENAME = 1 << 3, /* rename, link, unlink, rmdir */
    CALL_CREATE = 1 << 4, /* open with O_CREAT of a file that is not there, mkdir, symlink */
    CALL_MODIFY = 1 << 5, /* open for writing of a file that is there */
    CALL_READ = 1 << 6,   /* read, pread */
};

struct rule {
    uint64_t active;      /* 0: not looked at */
    uint64_t calls;       /* set of CALL_* */
    uint64_t error;       /* errno; 0: none */
    uint64_t delay_us;    /* before the call */
    uint64_t after;       /* calls that pass before the rule begins to bite */
    uint64_t times;       /* calls that it bites; 0: without end */
    uint64_t short_bytes; /* if not 0 and there is no error: a write takes at most this many */
    uint64_t seen;        /* counted here: calls that matched */
    uint64_t bitten;      /* counted here: calls that were failed, delayed or cut short */
    uint64_t spare[7];
    char below[TEXT];     /* beginning of the file's path */
    char ending[TEXT];    /* end of the file's path; empty: any */
    char program[TEXT];   /* short name of the program; empty: any */
};

static struct rule *rules;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MUSTER_DISK_CONTROL");
    if (!path) return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    struct stat stat;
    size_t bytes = RULES * sizeof(struct rule);
    if (fstat(fd, &stat) == 0 && (size_t)stat.st_size >= bytes) {
        void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map != MAP_FAILED) rules = map;
    }
    close(fd);
}

static int any_active(void) {
    if (!rules) return 0;
    for (int i = 0; i < RULES; i++)
        if (__atomic_load_n(&rules[i].active, __ATOMIC_ACQUIRE)) return 1;
    return 0;
}

static int begins(const char *path, const char *with) { return strncmp(path, with, strlen(with)) == 0; }

static int ends(const char *path, const char *with) {
    size_t length = strlen(path), tail = strlen(with);
    return tail <= length && strcmp(path + length - tail, with) == 0;
}

/* Applies the rules to a call on `path`. Returns an errno, or 0 and possibly a smaller `*bytes`. */
static int judge(uint64_t call, const char *path, size_t *bytes) {
    for (int i = 0; i < RULES; i++) {
        struct rule *rule = &rules[i];
        if (!__atomic_load_n(&rule->active, __ATOMIC_ACQUIRE) || !(rule->calls & call)) continue;
        if (!begins(path, rule->below) || !ends(path, rule->ending)) continue;
        if (rule->program[0] && strcmp(rule->program, program_invocation_short_name) != 0) continue;
        uint64_t seen = __atomic_add_fetch(&rule->seen, 1, __ATOMIC_RELAXED);
        if (seen <= rule->after) continue;
        if (rule->times && seen - rule->after > rule->times) continue;
        __atomic_add_fetch(&rule->bitten, 1, __ATOMIC_RELAXED);
        if (rule->delay_us) {
            struct timespec pause = {(time_t)(rule->delay_us / 1000000),
                                     (long)(rule->delay_us % 1000000) * 1000};
            while (nanosleep(&pause, &pause) != 0 && errno == EINTR) {}
        }
        if (rule->error) return (int)rule->error;
        if (rule->short_bytes && bytes && *bytes > rule->short_bytes) *bytes = rule->short_bytes;
    }
    return 0;
}

static int by_path(uint64_t call, int folder, const char *path) {
    if (!any_active() || !path) return 0;
    char whole[PATH_MAX];
    if (path[0] != '/') {
        char link[64], base[PATH_MAX];
        if (folder == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
        if (snprintf(whole, sizeof whole, "%s/%s", base, path) >= (int)sizeof whole) return 0;
        path = whole;
    }
    return judge(call, path, NULL);
}

static int by_fd(uint64_t call, int fd, size_t *bytes) {
    if (!any_active()) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (path[0] != '/') return 0;
    return judge(call, path, bytes);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define REFUSE(expression) \
    do { \
        int refused = (expression); \
        if (refused) { \
            errno = refused; \
            return -1; \
        } \
    } while (0)

int fsync(int fd) {
    REAL(fsync);
    REFUSE(by_fd(CALL_SYNC, fd, NULL));
    return real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    REFUSE(by_fd(CALL_SYNC, fd, NULL));
    return real(fd);
}

ssize_t write(int fd, const void *buffer, size_t bytes) {
    REAL(write);
    REFUSE(by_fd(CALL_WRITE, fd, &bytes));
    return real(fd, buffer, bytes);
}

ssize_t pwrite(int fd, const void *buffer, size_t bytes, off_t at) {
    REAL(pwrite);
    REFUSE(by_fd(CALL_WRITE, fd, &bytes));
    return real(fd, buffer, bytes, at);
}

ssize_t pwrite64(int fd, const void *buffer, size_t bytes, off64_t at) {
    REAL(pwrite64);
    REFUSE(by_fd(CALL_WRITE, fd, &bytes));
    return real(fd, buffer, bytes, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    REFUSE(by_fd(CALL_WRITE, fd, NULL));
    return real(fd, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    REAL(pwritev);
    REFUSE(by_fd(CALL_WRITE, fd, NULL));
    return real(fd, parts, count, at);
}

int posix_fallocate(int fd, off_t at, off_t bytes) {
    REAL(posix_fallocate);
    int refused = by_fd(CALL_WRITE, fd, NULL);
    return refused ? refused : real(fd, at, bytes);
}

int fallocate(int fd, int mode, off_t at, off_t bytes) {
    REAL(fallocate);
    REFUSE(by_fd(CALL_WRITE, fd, NULL));
    return real(fd, mode, at, bytes);
}

ssize_t read(int fd, void *buffer, size_t bytes) {
    REAL(read);
    REFUSE(by_fd(CALL_READ, fd, NULL));
    return real(fd, buffer, bytes);
}

ssize_t pread(int fd, void *buffer, size_t bytes, off_t at) {
    REAL(pread);
    REFUSE(by_fd(CALL_READ, fd, NULL));
    return real(fd, buffer, bytes, at);
}

ssize_t pread64(int fd, void *buffer, size_t bytes, off64_t at) {
    REAL(pread64);
    REFUSE(by_fd(CALL_READ, fd, NULL));
    return real(fd, buffer, bytes, at);
}

int ftruncate(int fd, off_t bytes) {
    REAL(ftruncate);
    REFUSE(by_fd(CALL_CUT, fd, NULL));
    return real(fd, bytes);
}

int ftruncate64(int fd, off64_t bytes) {
    REAL(ftruncate64);
    REFUSE(by_fd(CALL_CUT, fd, NULL));
    return real(fd, bytes);
}

int truncate(const char *path, off_t bytes) {
    REAL(truncate);
    REFUSE(by_path(CALL_CUT, AT_FDCWD, path));
    return real(path, bytes);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    REFUSE(by_path(CALL_RENAME, AT_FDCWD, to));
    return real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    REFUSE(by_path(CALL_RENAME, to_folder, to));
    return real(from_folder, from, to_folder, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    REAL(renameat2);
    REFUSE(by_path(CALL_RENAME, to_folder, to));
    return real(from_folder, from, to_folder, to, flags);
}

int link(const char *from, const char *to) {
    REAL(link);
    REFUSE(by_path(CALL_RENAME, AT_FDCWD, to));
    return real(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(linkat);
    REFUSE(by_path(CALL_RENAME, to_folder, to));
    return real(from_folder, from, to_folder, to, flags);
}

int unlink(const char *path) {
    REAL(unlink);
    REFUSE(by_path(CALL_RENAME, AT_FDCWD, path));
    return real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    REFUSE(by_path(CALL_RENAME, folder, path));
    return real(folder, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir);
    REFUSE(by_path(CALL_RENAME, AT_FDCWD, path));
    return real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    struct stat stat;
    if (any_active() && lstat(path, &stat) != 0) REFUSE(by_path(CALL_CREATE, AT_FDCWD, path));
    return real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    REFUSE(by_path(CALL_CREATE, folder, path));
    return real(folder, path, mode);
}

int symlink(const char *target, const char *path) {
    REAL(symlink);
    REFUSE(by_path(CALL_CREATE, AT_FDCWD, path));
    return real(target, path);
}

static int judge_open(int folder, const char *path, int flags) {
    if (!any_active() || !path) return 0;
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & (O_CREAT | O_TRUNC))) return 0;
    struct stat stat;
    int is_there = fstatat(folder, path, &stat, 0) == 0;
    if (!is_there) return flags & O_CREAT ? by_path(CALL_CREATE, folder, path) : 0;
    return by_path(CALL_MODIFY, folder, path);
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list list; \
        va_start(list, flags); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE_OF(flags)
    REFUSE(judge_open(AT_FDCWD, path, flags));
    return real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE_OF(flags)
    REFUSE(judge_open(AT_FDCWD, path, flags));
    return real(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    MODE_OF(flags)
    REFUSE(judge_open(folder, path, flags));
    return real(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    MODE_OF(flags)
    REFUSE(judge_open(folder, path, flags));
    return real(folder, path, flags, mode);
}

int creat(const char *path, mode_t mode) {
    REAL(creat);
    REFUSE(judge_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC));
    return real(path, mode);
}

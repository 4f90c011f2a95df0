/* A disk that remembers and that fails: loaded into larder by LD_PRELOAD, below everything that writes, LMDB included.
 *
 *   LARDER_DISK_ROOT   the folder that it is about; nothing else is touched
 *   LARDER_DISK_LOG    every change below it, in order, is appended to this file (see struct entry)
 *   LARDER_DISK_FAIL   N:ERRNO:once or N:ERRNO:on - the N-th change fails, or all from the N-th on
 *   LARDER_DISK_BAD    reads of files whose path has this in it fail with EIO, while it is not empty; the text is read
 *                      from this file each time. System calls that this library does not see fail too, with EBADF, on
 *                      a file that was opened while it was bad: it is opened for writing alone. openat2(2), which is
 *                      not seen either, is a call that this kernel does not know
 *   LARDER_CLOCK       a file with a number of seconds that the wall clock is off by, read each time
 *
 * A change and its entry are made under one lock, so that the order in the log is the order on the disk. Changes of
 * times are not seen: larder makes them by system call, and nothing is lost with them but an order of use.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { FDS = 4096, PATH = 4096 };

/* One change; path, second path and data follow. */
struct entry {
    uint8_t what;   /* C create, W write, S flush a file, D flush a folder, R rename, U unlink, M mkdir, X rmdir,
                       L set length, P mode; lower case: it was made to fail */
    uint8_t synced; /* the file was opened so that each write is flushed */
    uint16_t path, other;
    uint64_t inode, offset;
    uint32_t data;
} __attribute__((packed));

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH];
static size_t root_length;
static int log_fd = -1;
static long count, fail_at = -1;
static int fail_with, fail_on;
static const char *bad_path, *clock_path;

/* What is open below the root. */
static struct {
    uint64_t inode;
    uint8_t open, folder, synced;
    char *path;
} files[FDS];

#define REAL(result, name, ...)                                                                                        \
    static result (*real_##name)(__VA_ARGS__);                                                                         \
    if (!real_##name)                                                                                                  \
    real_##name = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* Has the kernel answer ENOSYS to openat2(2). */
static void forbid_openat2(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("disk shim: seccomp");
        abort();
    }
}

static void __attribute__((constructor)) begin(void) {
    const char *from = getenv("LARDER_DISK_ROOT");
    if (from && strlen(from) < PATH) {
        strcpy(root, from);
        root_length = strlen(root);
    }
    const char *log = getenv("LARDER_DISK_LOG");
    if (log)
        log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    const char *fail = getenv("LARDER_DISK_FAIL");
    char how[8];
    if (fail && sscanf(fail, "%ld:%d:%7s", &fail_at, &fail_with, how) == 3)
        fail_on = strcmp(how, "on") == 0;
    bad_path = getenv("LARDER_DISK_BAD");
    if (bad_path)
        forbid_openat2();
    clock_path = getenv("LARDER_CLOCK");
}

/* The path below the root, or NULL. */
static const char *below(int at, const char *path, char *buffer) {
    if (!root_length || !path)
        return NULL;
    if (path[0] != '/') {
        char link[64];
        if (at == AT_FDCWD) {
            if (!getcwd(buffer, PATH / 2))
                return NULL;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t n = readlink(link, buffer, PATH / 2);
            if (n <= 0)
                return NULL;
            buffer[n] = 0;
        }
        size_t n = strlen(buffer);
        if (n + 1 + strlen(path) >= PATH)
            return NULL;
        buffer[n] = '/';
        strcpy(buffer + n + 1, path);
        path = buffer;
    }
    if (strncmp(path, root, root_length) != 0 || (path[root_length] != '/' && path[root_length] != 0))
        return NULL;
    return path[root_length] ? path + root_length + 1 : "";
}

/* Whether this change is the one that fails. Called under the lock. */
static int fails(void) {
    count++;
    return fail_at >= 0 && (count == fail_at || (fail_on && count > fail_at));
}

static void put(uint8_t what, uint8_t synced, const char *path, const char *other, uint64_t inode, uint64_t offset,
                const struct iovec *data, int pieces, size_t length) {
    if (log_fd < 0)
        return;
    struct entry entry = {what, synced, path ? strlen(path) : 0, other ? strlen(other) : 0, inode, offset, length};
    struct iovec all[20];
    int n = 0;
    all[n++] = (struct iovec){&entry, sizeof entry};
    if (path)
        all[n++] = (struct iovec){(void *)path, entry.path};
    if (other)
        all[n++] = (struct iovec){(void *)other, entry.other};
    size_t left = length;
    char *joined = NULL;
    if (pieces > 16) {
        joined = malloc(length);
        size_t at = 0;
        for (int i = 0; i < pieces && at < length; i++) {
            size_t take = data[i].iov_len < length - at ? data[i].iov_len : length - at;
            memcpy(joined + at, data[i].iov_base, take);
            at += take;
        }
        all[n++] = (struct iovec){joined, length};
    } else {
        for (int i = 0; i < pieces && left; i++) {
            size_t take = data[i].iov_len < left ? data[i].iov_len : left;
            all[n++] = (struct iovec){data[i].iov_base, take};
            left -= take;
        }
    }
    ssize_t wanted = 0;
    for (int i = 0; i < n; i++)
        wanted += all[i].iov_len;
    if (syscall(SYS_writev, log_fd, all, n) != wanted)
        abort();
    free(joined);
}

static void forget(int fd) {
    if (fd >= 0 && fd < FDS && files[fd].open) {
        free(files[fd].path);
        memset(&files[fd], 0, sizeof files[fd]);
    }
}

/* A change that has failed on purpose. */
static int refuse(uint8_t what, const char *path) {
    put(what | 32, 0, path, NULL, 0, count, NULL, 0, 0);
    errno = fail_with;
    return -1;
}

/* The text of a small file; empty if there is none. */
static void text_of(const char *path, char *text, size_t size) {
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    ssize_t n = fd >= 0 ? syscall(SYS_read, fd, text, size - 1) : 0;
    if (fd >= 0)
        syscall(SYS_close, fd);
    while (n > 0 && text[n - 1] == '\n')
        n--;
    text[n > 0 ? n : 0] = 0;
}

/* Whether a file with this path cannot be read just now. */
static int is_bad_path(const char *path) {
    if (!bad_path)
        return 0;
    char text[256];
    text_of(bad_path, text, sizeof text);
    return text[0] && strstr(path, text) != NULL;
}

static int opened(int at, const char *path, int flags, mode_t mode) {
    char buffer[PATH];
    const char *name = below(at, path, buffer);
    if (!name)
        return syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before;
    int changes = (flags & (O_CREAT | O_TRUNC)) != 0, existed = fstatat(at, path, &before, 0) == 0;
    int creates = (flags & O_CREAT) && !existed, empties = (flags & O_TRUNC) && existed && before.st_size > 0;
    if (changes && (creates || empties) && fails()) {
        refuse('C', name);
        pthread_mutex_unlock(&lock);
        return -1;
    }
    if (existed && S_ISREG(before.st_mode) && (flags & O_ACCMODE) == O_RDONLY && is_bad_path(name))
        flags = (flags & ~O_ACCMODE) | O_WRONLY;
    int fd = syscall(SYS_openat, at, path, flags, mode);
    int error = errno;
    struct stat now;
    if (fd >= 0 && fd < FDS && fstat(fd, &now) == 0) {
        forget(fd);
        files[fd].open = 1;
        files[fd].folder = S_ISDIR(now.st_mode);
        files[fd].synced = (flags & (O_DSYNC | O_SYNC)) != 0;
        files[fd].inode = now.st_ino;
        files[fd].path = strdup(name);
        if (creates)
            put('C', 0, name, NULL, now.st_ino, now.st_mode & 07777, NULL, 0, 0);
        else if (empties)
            put('L', 0, name, NULL, now.st_ino, 0, NULL, 0, 0);
    }
    errno = error;
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE return opened(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE return opened(at, path, flags, mode); }

int close(int fd) {
    pthread_mutex_lock(&lock);
    forget(fd);
    int result = syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return result;
}

/* The C library closes folders by itself, so what was open under a number may have become something else. */
static int ours(int fd) {
    struct stat now;
    return root_length && fd >= 0 && fd < FDS && files[fd].open && fstat(fd, &now) == 0 &&
           now.st_ino == files[fd].inode && !S_ISSOCK(now.st_mode);
}

/* `at` < 0: where the file stands. */
static ssize_t written(int fd, const struct iovec *data, int pieces, off_t at) {
    if (!ours(fd)) {
        if (at < 0)
            return syscall(SYS_writev, fd, data, pieces);
        return syscall(SYS_pwritev, fd, data, pieces, at, 0);
    }
    pthread_mutex_lock(&lock);
    ssize_t result = -1;
    if (fails()) {
        refuse('W', files[fd].path);
        pthread_mutex_unlock(&lock);
        return -1;
    }
    off_t where = at;
    if (at < 0)
        where = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    result = at < 0 ? syscall(SYS_writev, fd, data, pieces) : syscall(SYS_pwritev, fd, data, pieces, at, 0);
    int error = errno;
    if (result > 0)
        put('W', files[fd].synced, files[fd].path, NULL, files[fd].inode, where, data, pieces, result);
    errno = error;
    pthread_mutex_unlock(&lock);
    return result;
}

static ssize_t written_one(int fd, const void *bytes, size_t n, off_t at) {
    struct iovec one = {(void *)bytes, n};
    return written(fd, &one, 1, at);
}

ssize_t write(int fd, const void *bytes, size_t n) { return written_one(fd, bytes, n, -1); }
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { return written_one(fd, bytes, n, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) { return written_one(fd, bytes, n, at); }
ssize_t writev(int fd, const struct iovec *data, int pieces) { return written(fd, data, pieces, -1); }
ssize_t pwritev(int fd, const struct iovec *data, int pieces, off_t at) { return written(fd, data, pieces, at); }
ssize_t pwritev64(int fd, const struct iovec *data, int pieces, off64_t at) { return written(fd, data, pieces, at); }

static int flushed(int fd, long number) {
    if (!ours(fd))
        return syscall(number, fd);
    pthread_mutex_lock(&lock);
    int result;
    if (fails())
        result = refuse(files[fd].folder ? 'D' : 'S', files[fd].path);
    else {
        /* Whether it reaches the medium is decided when a crash is made up. */
        result = 0;
        put(files[fd].folder ? 'D' : 'S', 0, files[fd].path, NULL, files[fd].inode, 0, NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int fd) { return flushed(fd, SYS_fsync); }
int fdatasync(int fd) { return flushed(fd, SYS_fdatasync); }

static int length_set(int fd, off_t length) {
    if (!ours(fd))
        return syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&lock);
    int result;
    if (fails())
        result = refuse('L', files[fd].path);
    else {
        result = syscall(SYS_ftruncate, fd, length);
        if (result == 0)
            put('L', 0, files[fd].path, NULL, files[fd].inode, length, NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int fd, off_t length) { return length_set(fd, length); }
int ftruncate64(int fd, off64_t length) { return length_set(fd, length); }

/* A change of names. */
static int named(uint8_t what, int at, const char *path, int at_other, const char *other, mode_t mode) {
    char one[PATH], two[PATH];
    const char *name = below(at, path, one), *name_other = other ? below(at_other, other, two) : NULL;
    if (name)
        pthread_mutex_lock(&lock);
    int result;
    if (name && fails())
        result = refuse(what, name);
    else {
        switch (what) {
        case 'R':
            result = syscall(SYS_renameat, at, path, at_other, other);
            break;
        case 'U':
            result = syscall(SYS_unlinkat, at, path, 0);
            break;
        case 'X':
            result = syscall(SYS_unlinkat, at, path, AT_REMOVEDIR);
            break;
        case 'M':
            result = syscall(SYS_mkdirat, at, path, mode);
            break;
        default:
            result = syscall(SYS_fchmodat, at, path, mode);
        }
        if (name && result == 0) {
            int error = errno;
            put(what, 0, name, name_other, 0, mode, NULL, 0, 0);
            errno = error;
        }
    }
    if (name)
        pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to) { return named('R', AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return named('R', a, from, b, to, 0); }
int unlink(const char *path) { return named('U', AT_FDCWD, path, 0, NULL, 0); }
int unlinkat(int at, const char *path, int flags) {
    return named(flags & AT_REMOVEDIR ? 'X' : 'U', at, path, 0, NULL, 0);
}
int rmdir(const char *path) { return named('X', AT_FDCWD, path, 0, NULL, 0); }
int mkdir(const char *path, mode_t mode) { return named('M', AT_FDCWD, path, 0, NULL, mode); }
int chmod(const char *path, mode_t mode) { return named('P', AT_FDCWD, path, 0, NULL, mode); }

static int is_bad(int fd) {
    return ours(fd) && is_bad_path(files[fd].path);
}

#define BAD(fd)                                                                                                        \
    if (is_bad(fd)) {                                                                                                  \
        errno = EIO;                                                                                                   \
        return -1;                                                                                                     \
    }

ssize_t read(int fd, void *into, size_t n) { BAD(fd) return syscall(SYS_read, fd, into, n); }
ssize_t pread(int fd, void *into, size_t n, off_t at) { BAD(fd) return syscall(SYS_pread64, fd, into, n, at); }
ssize_t pread64(int fd, void *into, size_t n, off64_t at) { BAD(fd) return syscall(SYS_pread64, fd, into, n, at); }

int clock_gettime(clockid_t which, struct timespec *at) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int result = real_clock_gettime(which, at);
    if (result == 0 && which == CLOCK_REALTIME && clock_path) {
        char text[64];
        text_of(clock_path, text, sizeof text);
        at->tv_sec += strtoll(text, NULL, 10);
    }
    return result;
}

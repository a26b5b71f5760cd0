/* Faults of disks and processes, for programs that are started with this library in LD_PRELOAD: see faults.py.

   It sees each change of a file in the folders FAULTS_FOLDERS (separated by colons), before the change is made, and counts.
   FAULTS_LOG: a file to which it appends every change, for replaying.
   FAULTS_AT, FAULTS_KILL: the process is killed before change number FAULTS_AT; if FAULTS_TORN is set, after half of a write.
   FAULTS_AT, FAULTS_ERROR: that change, and all later ones if FAULTS_LASTING is set, fail with this errno. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long count;

static long setting(const char *name) { return getenv(name) ? atol(getenv(name)) : 0; }

/* The absolute path of a name, relative to an open folder or to the working folder. */
static const char *absolute(int folder, const char *name, char *path) {
    char link[64], parent[PATH_MAX];
    if (name[0] == '/') return name;
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, parent, sizeof parent - 1);
    parent[length < 0 ? 0 : length] = 0;
    snprintf(path, 2 * PATH_MAX, "%s/%s", parent, name);
    return path;
}

static const char *path_of(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static int is_watched(const char *path) {
    const char *folders = getenv("FAULTS_FOLDERS");
    while (folders && *folders) {
        size_t length = strcspn(folders, ":");
        if (!strncmp(path, folders, length) && (path[length] == '/' || !path[length])) return 1;
        folders += length + (folders[length] == ':');
    }
    return 0;
}

static void append(int log, const void *data, size_t size) {
    for (size_t done = 0; done < size;) done += REAL(write)(log, (const char *)data + done, size - done);
}

/* A change is about to be made: log it, and do what the settings say. Returns 0, or the errno with which it must fail.
   `tear` makes half of it. */
static int change(const char *kind, const char *path, const char *other, long offset, const void *data, size_t size,
                  void (*tear)(void *), void *argument) {
    if (!is_watched(path) && !is_watched(other)) return 0;
    int saved = errno, error = 0;
    pthread_mutex_lock(&mutex);
    long at = setting("FAULTS_AT"), number = ++count;
    if (getenv("FAULTS_LOG")) {
        char line[4 * PATH_MAX];
        int log = REAL(open)(getenv("FAULTS_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        int length = snprintf(line, sizeof line, "%s%c%s%c%s%c%ld%c%zu\n", kind, 0, path, 0, other, 0, offset, 0, data ? size : 0);
        append(log, line, length);
        if (data) append(log, data, size);
        close(log);
    }
    if (at && number == at && getenv("FAULTS_KILL")) {
        if (tear && getenv("FAULTS_TORN")) tear(argument);
        kill(getpid(), SIGKILL);
    }
    if (at && getenv("FAULTS_ERROR") && (number == at || (number > at && getenv("FAULTS_LASTING"))))
        error = setting("FAULTS_ERROR");
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return error;
}

#define FAIL(error, result) do { int e = (error); if (e) { errno = e; return result; } } while (0)

/* Names. */

static int opening(const char *path, int flags) {
    if (!(flags & (O_CREAT | O_TRUNC)) || strstr(path, ".lock")) return 0; /* locks hold nothing */
    if (REAL(access)(path, F_OK)) return flags & O_CREAT ? change("create", path, "", 0, NULL, 0, NULL, NULL) : 0;
    return flags & O_TRUNC ? change("truncate", path, "", 0, NULL, 0, NULL, NULL) : 0;
}

#define OPEN(name) int name(const char *file, int flags, ...) { \
    char path[2 * PATH_MAX]; va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
    FAIL(opening(absolute(AT_FDCWD, file, path), flags), -1); return REAL(name)(file, flags, mode); }
#define OPENAT(name) int name(int folder, const char *file, int flags, ...) { \
    char path[2 * PATH_MAX]; va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
    FAIL(opening(absolute(folder, file, path), flags), -1); return REAL(name)(folder, file, flags, mode); }
#define FOPEN(name) FILE *name(const char *file, const char *mode) { \
    char path[2 * PATH_MAX]; \
    int flags = mode[0] == 'w' ? O_CREAT | O_TRUNC : mode[0] == 'a' ? O_CREAT : 0; \
    FAIL(opening(absolute(AT_FDCWD, file, path), flags), NULL); return REAL(name)(file, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64)

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    char a[2 * PATH_MAX], b[2 * PATH_MAX];
    FAIL(change("rename", absolute(from_folder, from, a), absolute(to_folder, to, b), 0, NULL, 0, NULL, NULL), -1);
    return REAL(renameat)(from_folder, from, to_folder, to);
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }
int unlinkat(int folder, const char *name, int flags) {
    char path[2 * PATH_MAX];
    FAIL(change("unlink", absolute(folder, name, path), "", 0, NULL, 0, NULL, NULL), -1);
    return REAL(unlinkat)(folder, name, flags);
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int mkdirat(int folder, const char *name, mode_t mode) {
    char path[2 * PATH_MAX];
    const char *whole = absolute(folder, name, path);
    if (REAL(access)(whole, F_OK)) FAIL(change("mkdir", whole, "", 0, NULL, 0, NULL, NULL), -1);
    return REAL(mkdirat)(folder, name, mode);
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* Contents. Data that a stream has taken and not yet written is logged early, which matters only without fsync. */

struct part { int file; const void *data; size_t size; long offset; };
static void write_part(void *argument) {
    struct part *part = argument;
    if (part->offset < 0) (void)!REAL(write)(part->file, part->data, part->size / 2);
    else (void)!REAL(pwrite)(part->file, part->data, part->size / 2, part->offset);
}

static int writing(int file, const void *data, size_t size, long offset) {
    char path[PATH_MAX];
    struct part part = {file, data, size, offset};
    if (!is_watched(path_of(file, path))) return 0;
    if (offset < 0) offset = lseek(file, 0, fcntl(file, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    return change("write", path, "", offset, data, size, write_part, &part);
}

ssize_t write(int file, const void *data, size_t size) {
    FAIL(writing(file, data, size, -1), -1);
    return REAL(write)(file, data, size);
}
#define PWRITE(name, type) ssize_t name(int file, const void *data, size_t size, type offset) { \
    FAIL(writing(file, data, size, offset), -1); return REAL(name)(file, data, size, offset); }
PWRITE(pwrite, off_t) PWRITE(pwrite64, off64_t)
ssize_t writev(int file, const struct iovec *parts, int number) {
    ssize_t total = 0, written = 0;
    char path[PATH_MAX];
    if (!is_watched(path_of(file, path))) return REAL(writev)(file, parts, number);
    for (int k = 0; k < number; k++, total += written)
        if ((written = write(file, parts[k].iov_base, parts[k].iov_len)) < 0) return -1;
    return total;
}
size_t fwrite(const void *data, size_t size, size_t number, FILE *stream) {
    struct part part = {fileno(stream), data, size * number, -1};
    char path[PATH_MAX];
    if (part.file >= 0 && is_watched(path_of(part.file, path)))
        FAIL(change("write", path, "", ftell(stream), data, size * number, write_part, &part), 0);
    return REAL(fwrite)(data, size, number, stream);
}
#define TRUNCATE(name, type) int name(int file, type length) { \
    char path[PATH_MAX]; \
    FAIL(change("truncate", path_of(file, path), "", length, NULL, 0, NULL, NULL), -1); return REAL(name)(file, length); }
TRUNCATE(ftruncate, off_t) TRUNCATE(ftruncate64, off64_t)

#define SYNC(name) int name(int file) { \
    char path[PATH_MAX]; \
    FAIL(change("sync", path_of(file, path), "", 0, NULL, 0, NULL, NULL), -1); return REAL(name)(file); }
SYNC(fsync) SYNC(fdatasync)

/* What would change files in other ways is refused, so that nothing goes unseen: programs then use write(). */
ssize_t sendfile(int to, int from, off_t *offset, size_t size) { errno = ENOSYS; return -1; }
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) { errno = ENOSYS; return -1; }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) { errno = ENOSYS; return -1; }

/* Copies a directory before each change that a process makes on the disk: what a SIGKILL
 * at that moment would leave. To be preloaded; kill_states.py compiles and drives it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char watched[PATH_MAX], out[PATH_MAX];
static int is_active, count;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread int is_copying; /* its own changes are not watched */

static void copy_file(const char *source, const char *target) {
  char buffer[1 << 16];
  ssize_t length;
  int from = open(source, O_RDONLY), to = open(target, O_WRONLY | O_CREAT, 0600);
  while (from >= 0 && to >= 0 && (length = read(from, buffer, sizeof buffer)) > 0)
    if (write(to, buffer, length) != length) break;
  if (from >= 0) close(from);
  if (to >= 0) close(to);
}

static void copy_tree(const char *source, const char *target) {
  char from[PATH_MAX], to[PATH_MAX];
  struct dirent *entry;
  struct stat found;
  DIR *folder = opendir(source);
  mkdir(target, 0700);
  while (folder && (entry = readdir(folder))) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    snprintf(from, sizeof from, "%s/%s", source, entry->d_name);
    snprintf(to, sizeof to, "%s/%s", target, entry->d_name);
    if (lstat(from, &found)) continue;
    if (S_ISDIR(found.st_mode)) copy_tree(from, to);
    else if (S_ISREG(found.st_mode)) copy_file(from, to);
  }
  if (folder) closedir(folder);
}

static void before_change(const char *path) {
  char target[PATH_MAX];
  if (!is_active || is_copying) return;
  /* A relative path may be inside: its folder is not looked up. */
  if (path && path[0] == '/' && strncmp(path, watched, strlen(watched))) return;
  pthread_mutex_lock(&mutex);
  is_copying = 1;
  snprintf(target, sizeof target, "%.4000s/%06d", out, count++);
  copy_tree(watched, target);
  is_copying = 0;
  pthread_mutex_unlock(&mutex);
}

void kill_states_start(const char *watched_path, const char *out_path) {
  snprintf(watched, sizeof watched, "%s", watched_path);
  snprintf(out, sizeof out, "%s", out_path);
  count = 0;
  is_active = 1;
}

void kill_states_stop(void) {
  before_change(NULL);
  is_active = 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WATCH(result, name, parameters, path, arguments) \
  result name parameters { before_change(path); return REAL(name) arguments; }

WATCH(int, rename, (const char *a, const char *b), b, (a, b))
WATCH(int, renameat, (int f, const char *a, int g, const char *b), b, (f, a, g, b))
WATCH(int, renameat2, (int f, const char *a, int g, const char *b, unsigned int h), b,
      (f, a, g, b, h))
WATCH(int, unlink, (const char *a), a, (a))
WATCH(int, unlinkat, (int f, const char *a, int g), a, (f, a, g))
WATCH(int, remove, (const char *a), a, (a))
WATCH(int, rmdir, (const char *a), a, (a))
WATCH(int, mkdir, (const char *a, mode_t m), a, (a, m))
WATCH(int, mkdirat, (int f, const char *a, mode_t m), a, (f, a, m))
WATCH(int, truncate, (const char *a, off_t n), a, (a, n))
WATCH(int, ftruncate, (int f, off_t n), NULL, (f, n))
WATCH(int, fsync, (int f), NULL, (f))
WATCH(int, fdatasync, (int f), NULL, (f))

#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define WATCH_OPEN(name)                               \
  int name(const char *path, int flags, ...) {         \
    va_list rest;                                      \
    va_start(rest, flags);                             \
    mode_t mode = va_arg(rest, mode_t);                \
    va_end(rest);                                      \
    if (WRITES(flags)) before_change(path);            \
    return REAL(name)(path, flags, mode);              \
  }
#define WATCH_OPENAT(name)                             \
  int name(int folder, const char *path, int flags, ...) { \
    va_list rest;                                      \
    va_start(rest, flags);                             \
    mode_t mode = va_arg(rest, mode_t);                \
    va_end(rest);                                      \
    if (WRITES(flags)) before_change(path);            \
    return REAL(name)(folder, path, flags, mode);      \
  }
#define WATCH_FOPEN(name)                              \
  FILE *name(const char *path, const char *mode) {     \
    if (mode[0] != 'r') before_change(path);           \
    return REAL(name)(path, mode);                     \
  }
WATCH_OPEN(open)
WATCH_OPEN(open64)
WATCH_OPENAT(openat)
WATCH_OPENAT(openat64)
WATCH_FOPEN(fopen)
WATCH_FOPEN(fopen64)

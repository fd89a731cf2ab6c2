// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/scontrol/find_program.h"

#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARK "slurm-icp scontrol front end"

// An ELF note: the linker puts it into the first page of the file, where is_front_end() finds it.
__attribute__((section(".note.slurm-icp"), used, aligned(4))) static const struct {
  Elf64_Nhdr head;
  char name[12];
  char mark[sizeof MARK + 3 - (sizeof MARK + 3) % 4];
} kNote = {{10, sizeof kNote.mark, 1}, "slurm-icp", MARK};

const char* own_path(void) {
  const char* path = (const char*)getauxval(AT_EXECFN);
  return path != NULL ? path : "scontrol";
}

// The same, without symbolic links. Empty if /proc does not say.
static void real_own_path(char path[kPathBytes]) {
  const ssize_t length = readlink("/proc/self/exe", path, kPathBytes - 1);
  path[length > 0 ? length : 0] = '\0';
}

static int is_program(const char* path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISREG(info.st_mode) && access(path, X_OK) == 0;
}

// A file that may be executed but not read is no copy of ours: installations are readable.
static int is_front_end(const char* path) {
  char start[4096];
  ssize_t length;
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  length = read(fd, start, sizeof start);
  close(fd);
  return length > 0 && memmem(start, (size_t)length, kNote.mark, strlen(kNote.mark)) != NULL;
}

static int is_real(const char* path) { return is_program(path) && !is_front_end(path); }

// Calls `wanted` for <directory>/<name>, for each directory of PATH, until it returns true. 0 if it never did.
static int search_path(const char* name, char path[kPathBytes], int (*wanted)(const char*)) {
  const char* from = getenv("PATH");
  if (from == NULL) from = "/usr/local/bin:/usr/bin:/bin";
  for (;;) {
    const size_t length = strcspn(from, ":");
    // An empty directory is the working directory, as in the shell.
    const int used = length == 0 ? snprintf(path, kPathBytes, "./%s", name)
                                 : snprintf(path, kPathBytes, "%.*s/%s", (int)length, from, name);
    if (used < kPathBytes && wanted(path)) return 1;
    if (from[length] == '\0') return 0;
    from += length + 1;
  }
}

static int beside(const char* program, const char* ending, char path[kPathBytes]) {
  return *program != '\0' && snprintf(path, kPathBytes, "%s%s", program, ending) < kPathBytes && is_real(path);
}

int find_real_scontrol(char path[kPathBytes]) {
  char real[kPathBytes];
  const char* given = getenv("ICP_REAL_SCONTROL");
  if (given != NULL && *given != '\0') return beside(given, "", path);
  if (beside(own_path(), ".distrib", path)) return 1;
  real_own_path(real);
  return beside(real, ".distrib", path) || search_path("scontrol", path, is_real);
}

int find_icp(char path[kPathBytes]) {
  char* slash;
  real_own_path(path);
  slash = strrchr(path, '/');
  if (slash != NULL && slash - path < kPathBytes - 8) {
    strcpy(slash, "/icp");
    if (is_program(path)) return 1;
  }
  if (search_path("icp", path, is_program)) return 1;
  return snprintf(path, kPathBytes, "%s", ICP_BIN_DIR "/icp") < kPathBytes && is_program(path);
}

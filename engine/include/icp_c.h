/* SPDX-License-Identifier: GPL-2.0-or-later
 * libicp for C programs: icp.h, function by function, which says what each does. Every function returns 0, or -1 with
 * *error filled in, which may be NULL. Thread-safe.
 *
 * Structures that the caller fills in begin with their own size, so that they may grow: initialise them to zero and
 * set it. NULL stands for one of zeroes.
 */
#ifndef ICP_C_H
#define ICP_C_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum icp_error_kind { ICP_SYSTEM = 1, ICP_REFUSED, ICP_BUSY, ICP_IMAGE, ICP_PERMISSION, ICP_USAGE, ICP_GONE };

struct icp_error {
  enum icp_error_kind kind;
  char text[2048]; /* cut when longer; ends with a zero byte */
  char hint[512];
};

struct icp_checkpoint_options {
  size_t size;
  int kill;
  uint32_t keep;
  const char* compression; /* NULL: "none" */
};

struct icp_restart_options {
  size_t size;
  uint32_t version;
  int lazy;
  const char* changed_files; /* NULL: "restore" */
};

struct icp_version {
  uint32_t number;
  int full;
  int damaged; /* icp_list(): it cannot be read, and all else but its number is 0 */
  uint32_t processes;
  uint64_t taken_unix_ns, pages_written, pages_total, bytes_written, stop_ns;
};

/* *findings: how many things would prevent a checkpoint; *text, unless NULL: a line for each, to be freed with free().
 */
int icp_check(pid_t root, size_t* findings, char** text, struct icp_error* error);
/* *version may be NULL. */
int icp_checkpoint(pid_t root, const char* dir, const struct icp_checkpoint_options* options,
                   struct icp_version* version, struct icp_error* error);
int icp_restart(const char* dir, const struct icp_restart_options* options, pid_t* root, struct icp_error* error);
/* *versions: an array of *count, to be freed with free(). */
int icp_list(const char* dir, struct icp_version** versions, size_t* count, struct icp_error* error);
/* One version, or all when it is 0. Damage is an error, ICP_IMAGE. */
int icp_verify(const char* dir, uint32_t version, struct icp_error* error);

#ifdef __cplusplus
}
#endif

#endif

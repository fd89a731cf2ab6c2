// SPDX-License-Identifier: GPL-2.0-or-later
// PAGEMAP_SCAN and the userfaultfd features it needs (Linux 6.7; the guard category 6.15), as in the kernel's
// include/uapi/linux/fs.h and userfaultfd.h, which Debian 12's headers are too old for. Names of our own, so that
// newer headers do not collide.
#pragma once

#include <sys/ioctl.h>

#include <cstdint>

namespace icp {

struct PagemapRegion {
  uint64_t start, end;  // bytes
  uint64_t categories;
};

struct PagemapScanArg {
  uint64_t size;
  uint64_t flags;
  uint64_t start, end;
  uint64_t walk_end;  // where the walk stopped
  uint64_t vec;       // PagemapRegion[vec_len]
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};
static_assert(sizeof(PagemapScanArg) == 96);

inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScanArg);

// PagemapScanArg.flags
inline constexpr uint64_t kScanWpMatching = 1 << 0;
inline constexpr uint64_t kScanCheckWpAsync = 1 << 1;

// Categories
inline constexpr uint64_t kPageWpAllowed = 1 << 0;
inline constexpr uint64_t kPageWritten = 1 << 1;
inline constexpr uint64_t kPageFile = 1 << 2;
inline constexpr uint64_t kPagePresent = 1 << 3;
inline constexpr uint64_t kPageSwapped = 1 << 4;
inline constexpr uint64_t kPagePfnZero = 1 << 5;
inline constexpr uint64_t kPageHuge = 1 << 6;
inline constexpr uint64_t kPageSoftDirty = 1 << 7;
inline constexpr uint64_t kPageGuard = 1 << 8;

// Regions asked for at a time. The kernel collects at most 512 per internal walk, and with a larger vector the
// walk_end it returns can lie before regions it has already given out and re-protected.
inline constexpr uint64_t kScanVector = 512;

// UFFDIO_API features
inline constexpr uint64_t kUffdWpHugetlbfsShmem = 1 << 12;
inline constexpr uint64_t kUffdWpUnpopulated = 1 << 13;
inline constexpr uint64_t kUffdWpAsync = 1 << 15;

// userfaultfd(2) flag: faults of user mode only, which needs no privilege. With WP_ASYNC nothing is ever delivered, so
// the kernel's own writes go through as well.
inline constexpr int kUffdUserModeOnly = 1;

}  // namespace icp

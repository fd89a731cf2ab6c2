// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/tracker/userfaultfd_tracker.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>

#include "engine/base/error.h"
#include "engine/base/parallel.h"
#include "engine/base/procfs.h"
#include "engine/trace/remote_process.h"
#include "engine/tracker/pagemap_scan.h"

namespace icp {
namespace {

constexpr uint64_t kDenseBytes = 2 << 20;    // runs below that are not worth a call of their own
constexpr uint64_t kShareBytes = 256 << 20;  // what one thread looks at: 0.15 ms

using Regions = std::array<PagemapRegion, kScanVector>;

bool enable_async_write_protect(int uffd) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kUffdWpAsync | kUffdWpUnpopulated | kUffdWpHugetlbfsShmem;
  return ::ioctl(uffd, UFFDIO_API, &api) == 0;
}

// What to match and to return for a class of mapping.
void set_masks(MappingClass kind, PagemapScanArg& arg) {
  switch (kind) {
    case MappingClass::kAnonymous:
      arg.category_anyof_mask = kPagePresent | kPageSwapped;
      arg.return_mask = kPageWritten | kPagePfnZero;
      return;
    case MappingClass::kPrivateFile:
      // The file's own pages must stay unprotected: an entry that was protected leaves a marker behind when it is
      // dropped, and a marker looks like a swapped private page.
      arg.category_inverted = kPageFile;
      arg.category_mask = kPageFile;
      arg.category_anyof_mask = kPagePresent | kPageSwapped;
      arg.return_mask = kPageWritten | kPageSwapped;
      return;
    case MappingClass::kShared:
      arg.category_mask = kPageWritten;
      arg.return_mask = kPageWritten;
      return;
  }
}

PageRange to_range(const PagemapRegion& region, MappingClass kind, bool all_written) {
  PageRange range{region.start, region.end, all_written || (region.categories & kPageWritten) != 0, false};
  if (kind == MappingClass::kAnonymous) range.zero = (region.categories & kPagePfnZero) != 0;
  // A private page that was protected and then discarded (MADV_DONTNEED, truncation of the file) leaves a marker that
  // reads as swapped and unwritten, while the memory holds the file's content again. Reading it tells; so do that.
  if (kind == MappingClass::kPrivateFile && (region.categories & kPageSwapped) != 0) range.written = true;
  return range;
}

// Shared memory in tmpfs, of which some is worth tracking; of files on disk nothing is.
bool is_memory(const MapsEntry& entry) {
  return entry.path.starts_with("/SYSV") || entry.path.starts_with("/dev/shm/") || entry.path.starts_with("/memfd:") ||
         entry.path == "/dev/zero";
}

}  // namespace

UserfaultfdTracker::UserfaultfdTracker(pid_t pid, UniqueFd uffd, UniqueFd pagemap)
    : pid_(pid), uffd_(std::move(uffd)), pagemap_(std::move(pagemap)) {}

bool UserfaultfdTracker::available() {
  const UniqueFd uffd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | kUffdUserModeOnly)));
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!uffd || !pagemap || !enable_async_write_protect(uffd.get())) return false;
  void* page = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  *static_cast<volatile char*>(page) = 1;
  const auto start = reinterpret_cast<uint64_t>(page);

  uffdio_register range{};
  range.range = {start, kPageSize};
  range.mode = UFFDIO_REGISTER_MODE_WP;
  Regions regions;
  PagemapScanArg arg{};
  arg.size = sizeof arg;
  arg.flags = kScanWpMatching | kScanCheckWpAsync;
  arg.start = start;
  arg.end = start + kPageSize;
  arg.vec = reinterpret_cast<uint64_t>(regions.data());
  arg.vec_len = regions.size();
  set_masks(MappingClass::kAnonymous, arg);
  const auto count_written = [&]() -> int {
    const int count = ::ioctl(pagemap.get(), kPagemapScan, &arg);
    return count == 1 ? static_cast<int>((regions[0].categories & kPageWritten) != 0) : -1;
  };
  bool works = ::ioctl(uffd.get(), UFFDIO_REGISTER, &range) == 0 && count_written() == 1 && count_written() == 0;
  *static_cast<volatile char*>(page) = 2;
  works = works && count_written() == 1;
  ::munmap(page, kPageSize);
  return works;
}

std::unique_ptr<UserfaultfdTracker> UserfaultfdTracker::make(RemoteProcess& process) {
  const int64_t remote =
      process.syscall(SYS_userfaultfd, {static_cast<uint64_t>(O_CLOEXEC | O_NONBLOCK | kUffdUserModeOnly)});
  if (remote < 0) return nullptr;
  UniqueFd uffd;
  try {
    uffd = process.take_fd(static_cast<int>(remote));
  } catch (...) {
    process.syscall(SYS_close, {static_cast<uint64_t>(remote)});
    throw;
  }
  process.syscall(SYS_close, {static_cast<uint64_t>(remote)});
  if (!enable_async_write_protect(uffd.get())) return nullptr;
  UniqueFd pagemap(::open(fmt::format("/proc/{}/pagemap", process.pid()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap) throw_errno("cannot open /proc/{}/pagemap", process.pid());
  return std::unique_ptr<UserfaultfdTracker>(
      new UserfaultfdTracker(process.pid(), std::move(uffd), std::move(pagemap)));
}

bool UserfaultfdTracker::alive() const {
  // The kernel answers ESRCH when the address space has ended, and otherwise that nothing is registered at the last
  // page of user space. Should the stack lie there, lifting its protection only makes it count as written.
  uffdio_writeprotect probe{};
  probe.range = {0x7fffffffe000, kPageSize};
  return ::ioctl(uffd_.get(), UFFDIO_WRITEPROTECT, &probe) == 0 || errno != ESRCH;
}

// Makes [start, end), whole mappings of a stopped process, tracked. False when the kernel cannot (a device).
bool UserfaultfdTracker::attach(uint64_t start, uint64_t end) {
  uffdio_register range{};
  range.range = {start, end - start};
  range.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(uffd_.get(), UFFDIO_REGISTER, &range) == 0) return true;
  if (errno == ESRCH) throw_error(ErrorKind::kGone, "process {} has ended or started another program", pid_);
  return false;
}

// Leaves no page of [start, end) protected, before its first scan: up to 6.13 mremap kept the protection bit of pages
// whose mapping had lost its tracking, and such a page can be written and still look unwritten. Any part of tracked
// mappings will do. False when some of it is not tracked.
bool UserfaultfdTracker::wipe(uint64_t start, uint64_t end) {
  uffdio_writeprotect clear{};
  clear.range = {start, end - start};
  return ::ioctl(uffd_.get(), UFFDIO_WRITEPROTECT, &clear) == 0;
}

// What was attached in a stop is wiped after it: that takes a walk through all page tables.
bool UserfaultfdTracker::wipe_fresh(uint64_t start, uint64_t end) {
  if (fresh_.empty()) return true;
  const Range whole{start, end};
  const std::vector<Range> fresh = intersect(fresh_, std::span(&whole, 1));
  for (const Range& range : fresh)
    if (!wipe(range.start, range.end)) return false;
  fresh_ = subtract(fresh_, fresh);
  return true;
}

bool UserfaultfdTracker::track_mappings(const std::vector<MapsEntry>& whole, bool all) {
  const auto is_wanted = [&](const MapsEntry& entry) {
    const bool special = entry.path.starts_with("[v") || entry.path == "[uprobes]";
    if (all) return !special && (!entry.shared || is_memory(entry));
    return std::any_of(wanted_.begin(), wanted_.end(), [&](const Wanted& wanted) {
      return wanted.shared == entry.shared && wanted.range.start < entry.end && entry.start < wanted.range.end;
    });
  };
  bool shared = false;
  std::vector<Range> attached;
  // Neighbours in one call: most of a process lies in a few such runs.
  for (size_t i = 0; i < whole.size();) {
    if (!is_wanted(whole[i])) {
      ++i;
      continue;
    }
    size_t after = i + 1;
    while (after < whole.size() && whole[after].start == whole[after - 1].end && is_wanted(whole[after])) ++after;
    const bool together = attach(whole[i].start, whole[after - 1].end);
    for (; i < after; ++i) {
      if (!together && !attach(whole[i].start, whole[i].end)) continue;
      append_range(attached, {whole[i].start, whole[i].end});
      shared = shared || whole[i].shared;
    }
  }
  fresh_.insert(fresh_.end(), attached.begin(), attached.end());
  normalise(fresh_);
  wanted_.clear();
  return shared;
}

void UserfaultfdTracker::collect_untracked(uint64_t start, uint64_t end, MappingClass kind,
                                           std::vector<PageRange>& out) {
  if (kind == MappingClass::kShared) {
    append_page_range(out, {start, end, true, false});
    return;
  }
  Regions regions;
  PagemapScanArg arg{};
  arg.size = sizeof arg;
  arg.end = end;
  arg.vec = reinterpret_cast<uint64_t>(regions.data());
  arg.vec_len = regions.size();
  set_masks(kind, arg);
  for (uint64_t at = start; at < end;) {
    arg.start = at;
    arg.walk_end = 0;
    const int count = ::ioctl(pagemap_.get(), kPagemapScan, &arg);
    if (count < 0) throw_errno("cannot scan the page table of process {} at {:x}-{:x}", pid_, at, end);
    for (int i = 0; i < count; ++i) append_page_range(out, to_range(regions[static_cast<size_t>(i)], kind, true));
    if (static_cast<uint64_t>(count) < kScanVector) return;
    at = regions.back().end;
  }
}

// The dense runs are worth their trouble only while they are dense: pages discarded in them count as written there, and
// would be read as zeros. Resident memory tells when many must be gone.
void UserfaultfdTracker::begin_pass(bool, bool stopped) {
  stopped_ = stopped;
  wanted_.clear();
  dense_ = std::move(next_dense_);
  next_dense_.clear();
  uint64_t pages = 0;
  for (const PageRange& range : dense_) pages += (range.end - range.start) / kPageSize;
  if (pages == 0) return;
  uint64_t size = 0, resident = 0;
  const std::string text = read_proc(pid_, "statm");
  if (std::sscanf(text.c_str(), "%" SCNu64 " %" SCNu64, &size, &resident) != 2 ||
      resident + pages / 64 + 1024 < pages) {
    dense_.clear();
  }
}

// A run of anonymous memory that held data throughout. Asked for written pages and nothing else the kernel goes through
// a page table 20 times faster, but it takes holes for written and marks them. That is right as well: what was
// discarded since reads as zeros, and a marked hole as unwritten.
bool UserfaultfdTracker::scan_dense(Part part, Range whole, bool rearm, std::vector<PageRange>& out) {
  std::vector<PageRange> written;
  const bool tracked = scan(part, whole, MappingClass::kShared, rearm, written);
  uint64_t start = part.start;
  const uint64_t end = part.end;
  for (const PageRange& range : written) {
    if (start < range.start) append_page_range(out, {start, range.start, false, false});
    append_page_range(out, {range.start, range.end, true, false});
    start = range.end;
  }
  if (start < end) append_page_range(out, {start, end, false, false});
  return tracked;
}

bool UserfaultfdTracker::is_tracked(uint64_t page) const {
  PagemapRegion region;
  PagemapScanArg arg{};
  arg.size = sizeof arg;
  arg.flags = kScanCheckWpAsync;
  arg.start = page;
  arg.end = page + kPageSize;
  arg.vec = reinterpret_cast<uint64_t>(&region);
  arg.vec_len = 1;
  arg.return_mask = kPageWritten;
  return ::ioctl(pagemap_.get(), kPagemapScan, &arg) >= 0;
}

// The parts of [start, end), by turns what is not known to be dense and what is.
std::vector<UserfaultfdTracker::Part> UserfaultfdTracker::parts_of(uint64_t start, uint64_t end,
                                                                   MappingClass kind) const {
  std::vector<Part> parts;
  auto dense = std::partition_point(dense_.begin(), dense_.end(), [&](const PageRange& r) { return r.end <= start; });
  if (kind != MappingClass::kAnonymous) dense = dense_.end();
  for (; dense != dense_.end() && dense->start < end; ++dense) {
    const uint64_t from = std::max(start, dense->start), to = std::min(end, dense->end);
    if (start < from) parts.push_back({start, from, false});
    parts.push_back({from, to, true});
    start = to;
  }
  if (start < end) parts.push_back({start, end, false});
  return parts;
}

// The kernel goes through the page tables of one process with as many threads as ask it to. Cut where tables begin: a
// huge page is protected as one.
std::vector<UserfaultfdTracker::Part> UserfaultfdTracker::shares_of(const std::vector<Part>& parts) {
  std::vector<Part> shares;
  for (Part part : parts) {
    for (uint64_t cut; (cut = (part.start / kShareBytes + 1) * kShareBytes) < part.end; part.start = cut)
      shares.push_back({part.start, cut, part.dense});
    shares.push_back(part);
  }
  return shares;
}

bool UserfaultfdTracker::collect(uint64_t start, uint64_t end, MappingClass kind, bool rearm,
                                 std::vector<PageRange>& out) {
  if (start >= end) return true;
  const Range whole{start, end};
  const auto want = [&] {
    if (!stopped_) wanted_.push_back({whole, kind == MappingClass::kShared});
  };
  if (!wipe_fresh(start, end)) {
    // It has changed since it was attached.
    if (!stopped_ || !attach(start, end) || !wipe(start, end)) {
      want();
      collect_untracked(start, end, kind, out);
      return false;
    }
    fresh_ = subtract(fresh_, std::span(&whole, 1));
  }
  std::vector<Part> parts = parts_of(start, end, kind);
  // Where tracking has to begin it does for the mapping as a whole.
  const bool shared = end - start > kShareBytes && is_tracked(start);
  if (shared) parts = shares_of(parts);
  std::vector<std::vector<PageRange>> found_in(parts.size());
  std::atomic<bool> tracked = true;
  parallel_for(parts.size(), shared ? (end - start) / kShareBytes + 1 : 1, [&]() -> ItemWork {
    return [&](size_t i) {
      const Part& part = parts[i];
      const bool known =
          part.dense ? scan_dense(part, whole, rearm, found_in[i]) : scan(part, whole, kind, rearm, found_in[i]);
      if (!known) tracked = false;
    };
  });
  if (!tracked) want();
  std::vector<PageRange> found;
  for (const std::vector<PageRange>& some : found_in)
    for (const PageRange& range : some) append_page_range(found, range);
  if (kind != MappingClass::kAnonymous) {
    for (const PageRange& range : found) append_page_range(out, range);
    return tracked;
  }

  PageRange run{};
  const auto note = [&] {
    if (run.end - run.start >= kDenseBytes) next_dense_.push_back(run);
  };
  for (const PageRange& range : found) {
    append_page_range(out, range);
    if (range.zero) continue;
    if (run.end == range.start) {
      run.end = range.end;
    } else {
      note();
      run = {range.start, range.end, false, false};
    }
  }
  note();
  return tracked;
}

// The general way: looks at every page's entry. `whole`: the mapping that it is a part of.
bool UserfaultfdTracker::scan(Part part, Range whole, MappingClass kind, bool rearm, std::vector<PageRange>& out) {
  const uint64_t start = part.start, end = part.end;
  Regions regions;
  PagemapScanArg arg{};
  arg.size = sizeof arg;
  arg.flags = kScanCheckWpAsync | (rearm ? kScanWpMatching : 0);
  arg.end = end;
  arg.vec = reinterpret_cast<uint64_t>(regions.data());
  arg.vec_len = regions.size();
  set_masks(kind, arg);

  bool tracked = true;
  int tries = 0;
  for (uint64_t at = start; at < end;) {
    arg.start = at;
    arg.walk_end = 0;
    const int count = ::ioctl(pagemap_.get(), kPagemapScan, &arg);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno != EPERM) {
      throw_errno("cannot scan the page table of process {} at {:x}-{:x}", pid_, at, end);
    }
    if (count < 0) {
      // Some of [at, end) is not tracked. What the failed call has already re-protected was not returned, so all of
      // the rest counts as written, and the wiping lifts the protection again.
      tracked = false;
      if (rearm && stopped_ && tries++ < 3 && attach(whole.start, whole.end) && wipe(whole.start, whole.end)) continue;
      collect_untracked(at, end, kind, out);
      return false;
    }
    for (int i = 0; i < count; ++i) append_page_range(out, to_range(regions[static_cast<size_t>(i)], kind, !tracked));
    if (static_cast<uint64_t>(count) < kScanVector) break;
    at = regions.back().end;
  }
  return tracked;
}

}  // namespace icp

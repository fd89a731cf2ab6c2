// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/tracker/soft_dirty_tracker.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

std::string identity(const MapsEntry& entry) {
  return fmt::format("{:x}-{:x} {}{}{}{} {:x} {}:{} {}", entry.start, entry.end, entry.readable, entry.writable,
                     entry.executable, entry.shared, entry.offset, entry.dev_major, entry.dev_minor, entry.ino);
}

bool wipe(int clear_refs) { return ::pwrite(clear_refs, "4", 1, 0) == 1; }

}  // namespace

// On a kernel without soft-dirty, clear_refs accepts the 4 and the bit never reads 1 after a write.
bool SoftDirtyTracker::available() {
  const UniqueFd clear_refs(::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC));
  void* page = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!clear_refs || page == MAP_FAILED) return false;
  *static_cast<volatile char*>(page) = 1;
  bool works = false;
  try {
    const PagemapReader pagemap(::getpid());
    const auto start = reinterpret_cast<uint64_t>(page);
    const auto dirty = [&] {
      bool bit = false;
      pagemap.read(start, start + kPageSize,
                   [&](uint64_t, std::span<const uint64_t> entries) { bit = (entries[0] & kPagemapSoftDirty) != 0; });
      return bit;
    };
    works = dirty() && wipe(clear_refs.get()) && !dirty();
    *static_cast<volatile char*>(page) = 2;
    works = works && dirty();
  } catch (const Error&) {
    works = false;
  }
  ::munmap(page, kPageSize);
  return works;
}

SoftDirtyTracker::SoftDirtyTracker(pid_t pid) : pid_(pid), pagemap_(pid) {
  clear_refs_.reset(::open(fmt::format("/proc/{}/clear_refs", pid).c_str(), O_WRONLY | O_CLOEXEC));
  if (!clear_refs_) throw_errno("cannot open /proc/{}/clear_refs", pid);
}

bool SoftDirtyTracker::alive() const {
  try {
    pagemap_.read(0, kPageSize, [](uint64_t, std::span<const uint64_t>) {});
    return true;
  } catch (const Error&) {
    return false;
  }
}

void SoftDirtyTracker::snapshot(uint64_t start, uint64_t end) {
  pagemap_.read(start, end, [&](uint64_t address, std::span<const uint64_t> bits) {
    for (size_t i = 0; i < bits.size(); ++i) {
      Entry entry{address + i * kPageSize, address + (i + 1) * kPageSize,
                  (bits[i] & (kPagemapPresent | kPagemapSwapped)) != 0,
                  (bits[i] & kPagemapPresent) != 0 && (bits[i] & kPagemapFileOrShared) != 0,
                  (bits[i] & kPagemapSoftDirty) != 0};
      if (!entry.data && !entry.dirty) continue;
      if (!entries_.empty() && entries_.back().end == entry.start && entries_.back().data == entry.data &&
          entries_.back().file == entry.file && entries_.back().dirty == entry.dirty) {
        entries_.back().end = entry.end;
      } else {
        entries_.push_back(entry);
      }
    }
  });
}

void SoftDirtyTracker::begin_pass(bool rearm, bool) {
  entries_.clear();
  fresh_.clear();
  std::set<std::string> now;
  for (const MapsEntry& entry : MapsEntry::read(pid_)) {
    if (entry.path == "[vsyscall]") continue;
    snapshot(entry.start, entry.end);
    std::string id = identity(entry);
    if (known_.count(id) == 0) fresh_.emplace_back(entry.start, entry.end);
    now.insert(std::move(id));
  }
  if (!rearm) return;
  // If the wipe fails half-way, bits that are still set only make pages count as written again.
  if (!wipe(clear_refs_.get())) throw_errno("cannot clear the soft-dirty bits of process {}", pid_);
  known_ = std::move(now);
}

bool SoftDirtyTracker::collect(uint64_t start, uint64_t end, MappingClass kind, bool, std::vector<PageRange>& out) {
  const bool fresh = std::any_of(fresh_.begin(), fresh_.end(),
                                 [&](const auto& range) { return range.first < end && range.second > start; });
  if (kind == MappingClass::kShared && fresh) {
    append_page_range(out, {start, end, true, false});
    return false;
  }
  auto entry = std::lower_bound(entries_.begin(), entries_.end(), start,
                                [](const Entry& left, uint64_t address) { return left.end <= address; });
  uint64_t at = start;
  for (; entry != entries_.end() && entry->start < end; ++entry) {
    const PageRange range{std::max(entry->start, start), std::min(entry->end, end), fresh || entry->dirty, false};
    if (kind == MappingClass::kShared) {
      // A dropped entry forgets its bit: what is not present may have been written.
      if (at < range.start) append_page_range(out, {at, range.start, true, false});
      if (range.written || !entry->data) append_page_range(out, {range.start, range.end, true, false});
    } else if (entry->data && !(kind == MappingClass::kPrivateFile && entry->file)) {
      append_page_range(out, range);
    }
    at = range.end;
  }
  if (kind == MappingClass::kShared && at < end) append_page_range(out, {at, end, true, false});
  return !fresh;
}

}  // namespace icp

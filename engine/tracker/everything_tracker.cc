// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/tracker/everything_tracker.h"

#include "engine/base/error.h"
#include "engine/trace/remote_addr.h"

namespace icp {

EverythingTracker::EverythingTracker(pid_t pid) : pagemap_(pid), pid_(pid) {}

bool EverythingTracker::alive() const {
  // The open pagemap belongs to the address space it was opened for and reads as empty once that has ended.
  try {
    pagemap_.read(0, kPageSize, [](uint64_t, std::span<const uint64_t>) {});
    return true;
  } catch (const Error&) {
    return false;
  }
}

bool EverythingTracker::collect(uint64_t start, uint64_t end, MappingClass kind, bool, std::vector<PageRange>& out) {
  if (kind == MappingClass::kShared) {
    append_page_range(out, {start, end, true, false});
    return false;
  }
  pagemap_.read(start, end, [&](uint64_t address, std::span<const uint64_t> entries) {
    for (size_t i = 0; i < entries.size(); ++i) {
      const uint64_t entry = entries[i];
      if ((entry & (kPagemapPresent | kPagemapSwapped)) == 0) continue;
      if (kind == MappingClass::kPrivateFile && (entry & kPagemapPresent) != 0 && (entry & kPagemapFileOrShared) != 0) {
        continue;
      }
      const uint64_t at = address + i * kPageSize;
      append_page_range(out, {at, at + kPageSize, true, false});
    }
  });
  return false;
}

}  // namespace icp

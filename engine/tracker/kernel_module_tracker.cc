// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/tracker/kernel_module_tracker.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr uint64_t kAddressEnd = 1ull << 47;
constexpr uint32_t kRecords = 16384;  // asked for at a time

// Of the trackings that icp keeps: one a process, whatever directory its versions go to.
constexpr uint64_t kKeptKey = 0x69637020636b7074;

// `key`: of a tracking that is to be kept. Nothing when the module is not there or cannot; throws kGone.
UniqueFd start_tracking(pid_t pid, std::optional<uint64_t> key, icp_track& track) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process) throw_error(ErrorKind::kGone, "process {} has ended", pid);
  track = {};
  track.pidfd = process.get();
  if (key) {
    track.flags = ICP_TRACK_KEEP;
    track.key = *key;
  }
  UniqueFd device = broker().track(track);
  if (!device && errno == ESRCH) throw_error(ErrorKind::kGone, "process {} has ended", pid);
  return device;
}

// The first range of an ascending list that ends after `address`.
template <typename Ranges>
auto first_after(const Ranges& ranges, uint64_t address) {
  return std::partition_point(ranges.begin(), ranges.end(), [&](const auto& range) { return range.end <= address; });
}

}  // namespace

bool KernelModuleTracker::available() { return broker().has_module(); }

std::unique_ptr<KernelModuleTracker> KernelModuleTracker::make(pid_t pid, bool keep) {
  if (!available()) return nullptr;
  icp_track track{};
  UniqueFd device;
  if (keep) device = start_tracking(pid, kKeptKey, track);
  if (device && (track.flags & ICP_TRACK_EXISTED) != 0) {
    // Of a chain that is not gone on with: what it knows is of no use here, and it must not look like ours.
    ::ioctl(device.get(), ICP_IOC_UNTRACK);
    device = start_tracking(pid, kKeptKey, track);
    if (device && (track.flags & ICP_TRACK_EXISTED) != 0) device.reset();
  }
  const bool kept = static_cast<bool>(device);
  // Another agent has the kept one at this moment: this one lives as long as its tracker.
  if (!device) device = start_tracking(pid, std::nullopt, track);
  if (!device) return nullptr;
  std::unique_ptr<KernelModuleTracker> tracker(new KernelModuleTracker(pid, std::move(device)));
  tracker->kept_ = kept;
  return tracker;
}

std::unique_ptr<KernelModuleTracker> KernelModuleTracker::resume(pid_t pid, const TrackingCookie& cookie) {
  icp_track track{};
  UniqueFd device = start_tracking(pid, kKeptKey, track);
  if (!device) return nullptr;
  if ((track.flags & ICP_TRACK_EXISTED) == 0) {
    ::ioctl(device.get(), ICP_IOC_UNTRACK);
    return nullptr;
  }
  if (cookie == TrackingCookie{} || cookie != TrackingCookie{track.cookie[0], track.cookie[1]}) return nullptr;
  std::unique_ptr<KernelModuleTracker> tracker(new KernelModuleTracker(pid, std::move(device)));
  tracker->kept_ = true;
  tracker->data_known_ = false;
  return tracker;
}

void KernelModuleTracker::saved_as(const TrackingCookie& cookie) {
  if (!kept_) return;
  icp_cookie name{};
  std::copy(cookie.begin(), cookie.end(), std::begin(name.cookie));
  // Should it not get there, the next agent finds zeros, and takes everything.
  ::ioctl(device_.get(), ICP_IOC_COOKIE, &name);
}

bool KernelModuleTracker::alive() const {
  icp_range records[ICP_MIN_RECORDS];
  icp_collect nothing{};
  nothing.end = kPageSize;
  nothing.records = reinterpret_cast<uint64_t>(records);
  nothing.capacity = ICP_MIN_RECORDS;
  return ::ioctl(device_.get(), ICP_IOC_PEEK, &nothing) == 0 || errno != ESRCH;
}

std::vector<icp_range> KernelModuleTracker::ask(bool rearm, bool all) const {
  std::vector<icp_range> records;
  for (uint64_t at = 0; at < kAddressEnd;) {
    const size_t before = records.size();
    records.resize(before + kRecords);
    icp_collect arg{};
    arg.start = at;
    arg.end = kAddressEnd;
    arg.records = reinterpret_cast<uint64_t>(records.data() + before);
    arg.capacity = kRecords;
    arg.flags = all ? ICP_COLLECT_ALL : 0;
    if (::ioctl(device_.get(), rearm ? ICP_IOC_COLLECT : ICP_IOC_PEEK, &arg) != 0) {
      if (errno == ESRCH) throw_error(ErrorKind::kGone, "process {} has ended or started another program", pid_);
      throw_errno("icp_track cannot collect the written pages of process {}", pid_);
    }
    records.resize(before + arg.count);
    at = arg.next;
  }
  return records;
}

// What was known of a part's pages stays, but for the pages that records follow about.
void KernelModuleTracker::take(const std::vector<icp_range>& records) {
  std::vector<PageRange> old = std::move(data_);
  data_.clear();
  shared_.clear();
  parts_.clear();
  auto known = old.begin();
  const auto keep = [&](uint64_t start, uint64_t end) {
    while (known != old.end() && known->end <= start) ++known;
    for (auto it = known; it != old.end() && it->start < end; ++it) {
      append_page_range(data_, {std::max(start, it->start), std::min(end, it->end), false, it->zero});
    }
  };
  for (size_t i = 0; i < records.size();) {
    const icp_range& mapping = records[i];
    const bool tracked = (mapping.flags & (ICP_RANGE_NEW | ICP_RANGE_WHOLE)) == 0;
    const bool shared = (mapping.flags & ICP_RANGE_SHARED) != 0;
    parts_.push_back({mapping.start, mapping.end, tracked, (mapping.flags & ICP_RANGE_WHOLE) == 0});
    uint64_t at = mapping.start;
    for (++i; i < records.size() && (records[i].flags & ICP_RANGE_MAPPING) == 0; ++i) {
      const icp_range& pages = records[i];
      const bool written = (pages.flags & ICP_RANGE_WRITTEN) != 0;
      if (shared) {
        if (written) append_page_range(shared_, {pages.start, pages.end, true, false});
        continue;
      }
      if (tracked) keep(at, pages.start);
      at = pages.end;
      if ((pages.flags & (ICP_RANGE_DATA | ICP_RANGE_ZERO)) != 0) {
        append_page_range(data_, {pages.start, pages.end, written, (pages.flags & ICP_RANGE_ZERO) != 0});
      }
    }
    if (tracked && !shared) keep(at, mapping.end);
  }
}

void KernelModuleTracker::begin_pass(bool rearm, bool) {
  take(ask(rearm, !data_known_));
  data_known_ = true;
}

// Memory that the module said nothing of: mapped since the pass began, or of a kind it does not track.
void KernelModuleTracker::collect_unknown(uint64_t start, uint64_t end, MappingClass kind,
                                          std::vector<PageRange>& out) const {
  if (kind == MappingClass::kShared) {
    append_page_range(out, {start, end, true, false});
    return;
  }
  pagemap_.read(start, end, [&](uint64_t address, std::span<const uint64_t> entries) {
    for (size_t i = 0; i < entries.size(); ++i) {
      const bool present = (entries[i] & kPagemapPresent) != 0;
      if (!present && (entries[i] & kPagemapSwapped) == 0) continue;
      if (kind == MappingClass::kPrivateFile && present && (entries[i] & kPagemapFileOrShared) != 0) continue;
      append_page_range(out, {address + i * kPageSize, address + (i + 1) * kPageSize, true, false});
    }
  });
}

void KernelModuleTracker::collect_private(const Part& part, MappingClass kind, std::vector<PageRange>& out) const {
  for (auto it = first_after(data_, part.start); it != data_.end() && it->start < part.end; ++it) {
    // Only of anonymous memory zeros are nothing.
    append_page_range(out, {std::max(part.start, it->start), std::min(part.end, it->end), it->written,
                            it->zero && kind == MappingClass::kAnonymous});
  }
}

bool KernelModuleTracker::collect(uint64_t start, uint64_t end, MappingClass kind, bool, std::vector<PageRange>& out) {
  bool tracked = true;
  for (auto part = first_after(parts_, start); start < end; ++part) {
    if (part == parts_.end() || part->start > start) {
      const uint64_t upto = part == parts_.end() ? end : std::min(end, part->start);
      collect_unknown(start, upto, kind, out);
      tracked = false;
      start = upto;
      if (start == end) break;
    }
    const Part here{start, std::min(end, part->end), part->tracked, part->listed};
    tracked = tracked && here.tracked;
    if (!here.listed || (kind == MappingClass::kShared && !here.tracked)) {
      collect_unknown(here.start, here.end, kind, out);
    } else if (kind == MappingClass::kShared) {
      for (auto it = first_after(shared_, here.start); it != shared_.end() && it->start < here.end; ++it) {
        append_page_range(out, {std::max(here.start, it->start), std::min(here.end, it->end), true, false});
      }
    } else {
      collect_private(here, kind, out);
    }
    start = here.end;
  }
  return tracked;
}

}  // namespace icp

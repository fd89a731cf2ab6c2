// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/broker/machine_watch.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <linux/mount.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "engine/base/error.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr size_t kAllRings = 16 << 20;                        // bytes, of all processors together
constexpr size_t kLeastRing = 64 << 10, kMostRing = 1 << 20;  // bytes
constexpr size_t kNearlyFull = 8 << 10;                       // the longest record, with a path of 4096 bytes, fits in
constexpr size_t kMostInFilter = 32;                          // inodes named one by one; more: their devices

// Tracefs where it is mounted, or else mounted for us alone.
UniqueFd open_tracefs() {
  UniqueFd mounted(::open("/sys/kernel/tracing", O_DIRECTORY | O_RDONLY | O_CLOEXEC));
  if (mounted && ::faccessat(mounted.get(), "events", R_OK, 0) == 0) return mounted;
  const UniqueFd context(static_cast<int>(::syscall(SYS_fsopen, "tracefs", FSOPEN_CLOEXEC)));
  if (!context || ::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
    throw_errno("cannot open tracefs");
  UniqueFd root(static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0)));
  if (!root) throw_errno("cannot mount tracefs");
  return root;
}

uint64_t tracepoint_id(int tracefs, const char* name) {
  const UniqueFd file(::openat(tracefs, fmt::format("events/{}/id", name).c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 32> text{};
  if (!file || ::read(file.get(), text.data(), text.size() - 1) <= 0)
    throw_errno("cannot read the tracepoint {}", name);
  return std::strtoull(text.data(), nullptr, 10);
}

int configured_processors() { return static_cast<int>(::sysconf(_SC_NPROCESSORS_CONF)); }

std::string online_processors() {
  const UniqueFd file(::open("/sys/devices/system/cpu/online", O_RDONLY | O_CLOEXEC));
  std::array<char, 4096> text{};
  const ssize_t got = file ? ::read(file.get(), text.data(), text.size()) : 0;
  return {text.data(), static_cast<size_t>(std::max<ssize_t>(got, 0))};
}

// As the kernel keeps a device number (linux/kdev_t.h), which is what a tracepoint's filter sees.
uint64_t kernel_dev(uint64_t dev) { return static_cast<uint64_t>(major(dev)) << 20 | minor(dev); }

uint64_t sum_of(const std::vector<UniqueFd>& events) {
  uint64_t sum = 0;
  for (const UniqueFd& event : events) {
    uint64_t count = 0;
    if (::read(event.get(), &count, sizeof count) != sizeof count) throw_errno("cannot read a count of events");
    sum += count;
  }
  return sum;
}

// Three a processor: they must not be what page files and the job's files lack.
void check_descriptors() {
  rlimit limit{};
  const auto wanted = 3 * static_cast<rlim_t>(configured_processors());
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && wanted > limit.rlim_cur / 2) {
    throw_error(ErrorKind::kSystem, "{} descriptors are too many for a limit of {} (RLIMIT_NOFILE)", wanted,
                limit.rlim_cur);
  }
}

// One event for each processor that is online.
std::vector<UniqueFd> open_events(const perf_event_attr& attributes) {
  std::vector<UniqueFd> events;
  for (int processor = 0; processor < configured_processors(); ++processor) {
    UniqueFd event(static_cast<int>(::syscall(SYS_perf_event_open, &attributes, -1, processor, -1,
                                              static_cast<unsigned long>(PERF_FLAG_FD_CLOEXEC))));
    if (!event && errno == ENODEV) continue;  // offline
    if (!event) throw_errno("cannot open the event {} of processor {}", attributes.config, processor);
    events.push_back(std::move(event));
  }
  return events;
}

// Counts the events that match.
std::vector<UniqueFd> count_tracepoint(uint64_t id, const std::string& filter) {
  perf_event_attr attributes{};
  attributes.size = sizeof attributes;
  attributes.type = PERF_TYPE_TRACEPOINT;
  attributes.config = id;
  std::vector<UniqueFd> events = open_events(attributes);
  for (const UniqueFd& event : events) {
    if (::ioctl(event.get(), PERF_EVENT_IOC_SET_FILTER, filter.c_str()) != 0)
      throw_errno("cannot count the events {} that match {}", id, filter);
  }
  return events;
}

class PerfWatch final : public MachineWatch {
 public:
  PerfWatch();
  ~PerfWatch() override;
  bool outdated() const override { return online_processors() != processors_; }
  void set_inodes(const std::map<InodeId, int>& inodes) override;
  uint64_t changes() const override { return earlier_changes_ + sum_of(removals_) + sum_of(mremaps_); }
  void begin() override;
  void end() override;
  void take(Seen& seen) override;

 private:
  struct Ring {
    UniqueFd event;
    void* memory = nullptr;
  };
  void take_ring(const Ring& ring, Seen& seen) const;

  size_t ring_bytes_ = 0;  // of records, a power of two
  std::vector<Ring> rings_;
  uint64_t removal_id_ = 0;  // the tracepoint's
  std::set<InodeId> inodes_;
  std::vector<UniqueFd> removals_, mremaps_;
  uint64_t earlier_changes_ = 0;  // counted by events that were replaced
  std::string processors_;        // as /sys names those that are online
  bool recording_ = false;
};

PerfWatch::PerfWatch() {
  processors_ = online_processors();
  check_descriptors();
  const UniqueFd tracefs = open_tracefs();
  removal_id_ = tracepoint_id(tracefs.get(), "filemap/mm_filemap_delete_from_page_cache");
  mremaps_ = count_tracepoint(tracepoint_id(tracefs.get(), "syscalls/sys_enter_mremap"), "old_len == 0");

  perf_event_attr records{};
  records.size = sizeof records;
  records.type = PERF_TYPE_SOFTWARE;
  records.config = PERF_COUNT_SW_DUMMY;
  records.disabled = 1;
  records.exclude_kernel = 1;
  records.task = 1;
  records.mmap = records.mmap_data = records.mmap2 = 1;
  const size_t share = kAllRings / static_cast<size_t>(configured_processors());
  ring_bytes_ = std::clamp(std::bit_floor(share), kLeastRing, kMostRing);
  for (UniqueFd& event : open_events(records)) {
    void* memory = ::mmap(nullptr, kPageSize + ring_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, event.get(), 0);
    if (memory == MAP_FAILED) throw_errno("cannot map the records of mmap and fork");
    rings_.push_back({std::move(event), memory});
  }
}

PerfWatch::~PerfWatch() {
  for (const Ring& ring : rings_) ::munmap(ring.memory, kPageSize + ring_bytes_);
}

// An event keeps its first filter (kernel/trace/trace_events_filter.c), so new ones take the place of the old, which
// count until the new ones do.
void PerfWatch::set_inodes(const std::map<InodeId, int>& files) {
  std::set<InodeId> inodes;
  for (const auto& [inode, fd] : files) inodes.insert(inode);
  if (inodes == inodes_) return;
  std::set<std::string> terms;
  for (const InodeId& inode : inodes) {
    terms.insert(inodes.size() > kMostInFilter
                     ? fmt::format("(s_dev == {})", kernel_dev(inode.dev))
                     : fmt::format("(i_ino == {} && s_dev == {})", inode.ino, kernel_dev(inode.dev)));
  }
  std::vector<UniqueFd> events;
  if (!terms.empty()) events = count_tracepoint(removal_id_, fmt::format("{}", fmt::join(terms, " || ")));
  std::swap(events, removals_);
  inodes_ = inodes;
  earlier_changes_ += sum_of(events);
}

void PerfWatch::begin() {
  if (recording_) return;
  for (const Ring& ring : rings_) {
    if (::ioctl(ring.event.get(), PERF_EVENT_IOC_ENABLE, 0) != 0) throw_errno("cannot record mmap and fork");
  }
  recording_ = true;
  Seen before;
  take(before);
}

void PerfWatch::end() {
  if (!recording_) return;
  for (const Ring& ring : rings_) ::ioctl(ring.event.get(), PERF_EVENT_IOC_DISABLE, 0);
  recording_ = false;
}

void PerfWatch::take_ring(const Ring& ring, Seen& seen) const {
  auto* const control = static_cast<perf_event_mmap_page*>(ring.memory);
  const auto* const data = static_cast<const std::byte*>(ring.memory) + kPageSize;
  const uint64_t head = std::atomic_ref(control->data_head).load(std::memory_order_acquire);
  uint64_t tail = control->data_tail;
  // Full rings lose records, and say so only in the next one that fits.
  if (head - tail > ring_bytes_ - kNearlyFull) seen.complete = false;
  const auto copy = [&](uint64_t at, void* to, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
      const size_t from = (at + done) % ring_bytes_, part = std::min(bytes - done, ring_bytes_ - from);
      std::memcpy(static_cast<std::byte*>(to) + done, data + from, part);
      done += part;
    }
  };
  struct Mmap {  // perf_event_open(2), PERF_RECORD_MMAP2, up to the inode
    uint32_t pid, tid;
    uint64_t address, bytes, offset;
    uint32_t major, minor;
    uint64_t inode;
  };
  struct Fork {
    uint32_t pid, parent;
  };
  while (tail < head) {
    perf_event_header header{};
    copy(tail, &header, sizeof header);
    if (header.size < sizeof header || header.size > head - tail) {
      seen.complete = false;
      break;
    }
    if (header.type == PERF_RECORD_MMAP2) {
      Mmap record{};
      copy(tail + sizeof header, &record, sizeof record);
      if (record.inode != 0) seen.touched.insert({makedev(record.major, record.minor), record.inode});
      if (seen.touched.size() > MachineWatch::Seen::kMost) seen = {.complete = false, .touched = {}, .forked = {}};
    } else if (header.type == PERF_RECORD_FORK) {
      Fork record{};
      copy(tail + sizeof header, &record, sizeof record);
      if (record.pid != record.parent) seen.forked.insert(static_cast<pid_t>(record.parent));  // else: a thread
    } else if (header.type == PERF_RECORD_LOST) {
      seen.complete = false;
    }
    tail += header.size;
  }
  std::atomic_ref(control->data_tail).store(head, std::memory_order_release);
}

void PerfWatch::take(Seen& seen) {
  if (!recording_ || outdated()) seen.complete = false;
  for (const Ring& ring : rings_) take_ring(ring, seen);
}

}  // namespace

std::unique_ptr<MachineWatch> MachineWatch::make() { return std::make_unique<PerfWatch>(); }

}  // namespace icp

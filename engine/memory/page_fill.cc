// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/page_fill.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <tuple>

#include "engine/base/error.h"
#include "engine/base/parallel.h"
#include "engine/base/unique_fd.h"
#include "engine/memory/mapping_check.h"
#include "engine/memory/staging.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr uint64_t kChunkPages = 64;                          // 256 KiB: stays in the cache between reading and writing
constexpr uint64_t kGapPages = 2;                             // read along rather than read around
constexpr size_t kMostRuns = 512;                             // of one call; IOV_MAX is 1024
constexpr uint64_t kWorthThread = 4096, kMostWindow = 16384;  // pages
// Pages of a run, on average, from which on it is written from where it was read to.
constexpr uint64_t kLongRun = 16;

uint64_t end_of(const PageLocation& location, uint64_t pages) { return location.record + pages; }

}  // namespace

void PageFill::add(pid_t pid, const pb::AddressSpace& memory, const PageStoreReader& reader,
                   const std::vector<Range>& ranges, FreshMemory fresh) {
  Process& process = processes_.emplace_back(Process{pid, &reader, fresh.uffd, {}});
  auto free = fresh.ranges.begin();
  auto mapping = memory.mappings().begin();
  const auto end = memory.mappings().end();
  const auto take = [&](uint64_t address, uint64_t pages, PageLocation location) {
    while (pages > 0) {
      while (mapping != end && mapping->end() <= address) ++mapping;
      if (mapping == end || address < mapping->start() || !takes_private_pages(*mapping))
        throw_error(ErrorKind::kImage, "damaged image: the page at {:x} lies in no mapping it could belong to",
                    address);
      const uint64_t count = std::min({pages, kChunkPages, (mapping->end() - address) / kPageSize});
      // A fresh range is a whole mapping.
      while (free != fresh.ranges.end() && free->end <= address) ++free;
      const bool is_fresh = free != fresh.ranges.end() && free->start <= address;
      const Way way = is_fresh ? Way::kFresh : (mapping->prot() & PROT_WRITE) != 0 ? Way::kWritable : Way::kForced;
      const bool new_mapping = process.runs.empty() || process.runs.back().address < mapping->start();
      process.runs.push_back({address, static_cast<uint32_t>(count), way, new_mapping, location});
      address += count * kPageSize;
      location.record += count;
      pages -= count;
    }
  };
  for (const Range& range : ranges) reader.index().for_each_run(range.start, range.end, take);
}

std::vector<PageFill::Window> PageFill::windows_of(uint64_t pages) const {
  // Two for each thread at least, and no more memory than 256 MiB altogether.
  const uint64_t threads = std::min<uint64_t>(pages / kWorthThread + 1, kMostThreads);
  const uint64_t most = std::min({kMostWindow, kMostWindow * 4 / threads, pages / (2 * threads) + 1});
  std::vector<Window> windows;
  for (const Process& process : processes_) {
    for (size_t first = 0; first < process.runs.size();) {
      size_t last = first;
      for (uint64_t held = 0; last < process.runs.size(); ++last) {
        held += process.runs[last].pages;
        if (held > most && last > first) break;
      }
      windows.push_back({&process, first, last});
      first = last;
    }
  }
  return windows;
}

// One thread's share.
class PageFill::Worker {
 public:
  void fill(const Window& window);

 private:
  // Bytes that go to one place in the process.
  struct Copy {
    uint64_t address;
    std::byte* from;
    size_t bytes;
  };
  // A run, and its copy here.
  struct Placed {
    const Run* run;
    std::byte* at;
    uint64_t end() const { return end_of(run->location, run->pages); }
  };

  void take_process(const Process& process);
  std::byte* buffer(size_t bytes);
  void fill_directly(std::span<Placed> runs);
  void put_together(std::span<Placed> runs);
  size_t batch_from(std::span<const Placed> runs, bool one_way) const;
  void read_batch(std::span<const Placed> batch);
  void put(Way way, std::span<const Copy> copies);
  void copy_fresh(Copy copy);
  void write_own(std::span<const Copy> copies);
  void write_forced(const Copy& copy);

  const Process* process_ = nullptr;
  std::optional<PageStoreReader> reader_;
  UniqueFd mem_;
  std::unique_ptr<StagingArena> memory_;
  size_t memory_bytes_ = 0;
  std::vector<std::byte> unwanted_ = std::vector<std::byte>(kGapPages * kPageSize);  // records read along
};

void PageFill::Worker::take_process(const Process& process) {
  if (process_ == &process) return;
  process_ = &process;
  reader_.emplace(process.reader->sibling());
  mem_.reset();
}

std::byte* PageFill::Worker::buffer(size_t bytes) {
  if (bytes > memory_bytes_) {
    memory_ = std::make_unique<StagingArena>(bytes);
    memory_bytes_ = bytes;
  }
  memory_->reset(bytes);
  return memory_->allocate(bytes);
}

void PageFill::Worker::fill(const Window& window) {
  take_process(*window.process);
  std::vector<Placed> runs;
  uint64_t pages = 0;
  for (size_t i = window.first; i < window.last; ++i) {
    runs.push_back({&window.process->runs[i], nullptr});
    pages += runs.back().run->pages;
  }
  if (pages >= runs.size() * kLongRun) {
    fill_directly(runs);
    return;
  }
  std::byte* at = buffer(pages * kPageSize);
  for (Placed& placed : runs) {
    placed.at = at;
    at += placed.run->pages * kPageSize;
  }
  put_together(runs);
}

// How many of the runs, which are in the order of the files, one read takes.
size_t PageFill::Worker::batch_from(std::span<const Placed> runs, bool one_way) const {
  const Run& first = *runs.front().run;
  size_t next = 1;
  for (; next < runs.size() && next < kMostRuns; ++next) {
    const Run& run = *runs[next].run;
    const uint64_t before = runs[next - 1].end();
    if (run.location.version != first.location.version || (one_way && run.way != first.way) ||
        run.location.record < before || run.location.record > before + kGapPages ||
        runs[next].end() > first.location.record + kChunkPages)
      break;
  }
  return next;
}

// Reads the runs of a batch to their places, and checks them.
void PageFill::Worker::read_batch(std::span<const Placed> batch) {
  std::array<iovec, 2 * kMostRuns> parts;
  size_t count = 0;
  uint64_t record = batch.front().run->location.record;
  for (const Placed& placed : batch) {
    const Run& run = *placed.run;
    if (const uint64_t gap = run.location.record - record; gap > 0)
      parts[count++] = {unwanted_.data(), gap * kPageSize};
    parts[count++] = {placed.at, run.pages * kPageSize};
    record = placed.end();
  }
  reader_->read_unverified(batch.front().run->location, std::span(parts).first(count));
  for (const Placed& placed : batch) reader_->verify(placed.run->location, {placed.at, placed.run->pages * kPageSize});
}

namespace {

constexpr auto kInFileOrder = [](const auto& a, const auto& b) {
  return std::tie(a.run->location.version, a.run->location.record) <
         std::tie(b.run->location.version, b.run->location.record);
};

}  // namespace

// A batch goes on from the buffer at once, while it is in the cache.
void PageFill::Worker::fill_directly(std::span<Placed> runs) {
  std::sort(runs.begin(), runs.end(), kInFileOrder);
  std::byte* const start = buffer(kChunkPages * kPageSize);
  std::vector<Copy> copies;
  for (size_t i = 0; i < runs.size();) {
    const std::span<Placed> batch = runs.subspan(i, batch_from(runs.subspan(i), true));
    std::byte* at = start;
    copies.clear();
    for (Placed& placed : batch) {
      placed.at = at;
      at += placed.run->pages * kPageSize;
      copies.push_back({placed.run->address, placed.at, placed.run->pages * kPageSize});
    }
    read_batch(batch);
    put(batch.front().run->way, copies);
    i += batch.size();
  }
}

// All of it is read before any of it goes on.
void PageFill::Worker::put_together(std::span<Placed> runs) {
  std::vector<Placed> by_file(runs.begin(), runs.end());
  std::sort(by_file.begin(), by_file.end(), kInFileOrder);
  for (std::span<const Placed> left(by_file); !left.empty();) {
    const size_t count = batch_from(left, false);
    read_batch(left.first(count));
    left = left.subspan(count);
  }
  std::vector<Copy> copies;
  for (size_t i = 0; i < runs.size();) {
    const Way way = runs[i].run->way;
    copies.clear();
    for (; i < runs.size() && runs[i].run->way == way && copies.size() < kMostRuns; ++i) {
      const Run& run = *runs[i].run;
      const size_t bytes = run.pages * kPageSize;
      if (!copies.empty() && !run.new_mapping && copies.back().address + copies.back().bytes == run.address) {
        copies.back().bytes += bytes;
      } else {
        copies.push_back({run.address, runs[i].at, bytes});
      }
    }
    put(way, copies);
  }
}

void PageFill::Worker::put(Way way, std::span<const Copy> copies) {
  if (way == Way::kWritable) {
    write_own(copies);
    return;
  }
  for (const Copy& copy : copies) {
    if (way == Way::kFresh) {
      copy_fresh(copy);
    } else {
      write_forced(copy);
    }
  }
}

void PageFill::Worker::copy_fresh(Copy copy) {
  while (copy.bytes > 0) {
    uffdio_copy request{};
    request.dst = copy.address;
    request.src = reinterpret_cast<uint64_t>(copy.from);
    request.len = copy.bytes;
    if (::ioctl(process_->uffd->get(), UFFDIO_COPY, &request) == 0) return;
    const int why = errno;
    const auto done = request.copy > 0 ? static_cast<uint64_t>(request.copy) : 0;
    if ((why != EAGAIN && why != EINTR) || done >= copy.bytes) {
      throw Error(why == ESRCH ? ErrorKind::kGone : ErrorKind::kSystem,
                  fmt::format("cannot put {} bytes at {:x} of process {}: {}", copy.bytes, copy.address, process_->pid,
                              errno_text(why)),
                  why);
    }
    copy.address += done;
    copy.from += done;
    copy.bytes -= done;
  }
}

void PageFill::Worker::write_own(std::span<const Copy> copies) {
  std::array<iovec, kMostRuns> here, there;
  size_t count = 0, total = 0;
  for (const Copy& copy : copies) {
    here[count] = {copy.from, copy.bytes};
    there[count++] = {reinterpret_cast<void*>(copy.address), copy.bytes};
    total += copy.bytes;
  }
  const ssize_t done = ::process_vm_writev(process_->pid, here.data(), count, there.data(), count, 0);
  if (done == static_cast<ssize_t>(total)) return;
  const int why = done < 0 ? errno : EFAULT;
  throw Error(why == ESRCH ? ErrorKind::kGone : ErrorKind::kSystem,
              fmt::format("cannot write {} bytes of memory of process {} from {:x} on: {}", total, process_->pid,
                          copies.front().address, errno_text(why)),
              why);
}

// Mappings got their final protection at once: changing it later would split and account them anew, and reserves of
// terabytes could not be made writable for a moment. /proc/PID/mem writes where the process cannot.
void PageFill::Worker::write_forced(const Copy& copy) {
  if (!mem_) {
    mem_.reset(::open(fmt::format("/proc/{}/mem", process_->pid).c_str(), O_RDWR | O_CLOEXEC));
    if (!mem_) throw_errno("cannot open /proc/{}/mem", process_->pid);
  }
  for (size_t at = 0; at < copy.bytes;) {
    const ssize_t done = ::pwrite(mem_.get(), copy.from + at, copy.bytes - at, static_cast<off_t>(copy.address + at));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) throw_errno("cannot write memory of process {} at {:x}", process_->pid, copy.address + at);
    at += static_cast<size_t>(done);
  }
}

void PageFill::run() {
  uint64_t pages = 0;
  for (const Process& process : processes_)
    for (const Run& run : process.runs) pages += run.pages;
  const std::vector<Window> windows = windows_of(pages);
  parallel_for(windows.size(), pages / kWorthThread + 1, [&windows]() -> ItemWork {
    return [&windows, worker = std::make_shared<Worker>()](size_t window) { worker->fill(windows[window]); };
  });
  processes_.clear();
}

}  // namespace icp

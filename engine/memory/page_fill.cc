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
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr uint64_t kChunkPages = 64;     // 256 KiB: stays in the cache between reading and writing
constexpr uint64_t kPartPages = 4096;    // 16 MiB
constexpr uint64_t kGapPages = 2;        // read along rather than read around
constexpr size_t kMostRuns = 512;        // of one call; IOV_MAX is 1024
constexpr uint64_t kWorthThread = 4096;  // pages

}  // namespace

void PageFill::add(pid_t pid, const pb::AddressSpace& memory, const PageStoreReader& reader,
                   const std::vector<Range>& ranges, FreshMemory fresh) {
  Process& process = processes_.emplace_back(Process{pid, &reader, std::move(fresh.uffd), {}});
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
      process.runs.push_back({address, static_cast<uint32_t>(count), way, location});
      address += count * kPageSize;
      location.record += count;
      pages -= count;
    }
  };
  for (const Range& range : ranges) reader.index().for_each_run(range.start, range.end, take);
  std::sort(process.runs.begin(), process.runs.end(), [](const Run& a, const Run& b) {
    return std::tie(a.location.version, a.location.record) < std::tie(b.location.version, b.location.record);
  });
  size_t first = 0;
  uint64_t pages = 0;
  for (size_t i = 0; i < process.runs.size(); ++i) {
    pages += process.runs[i].pages;
    if (pages < kPartPages && i + 1 < process.runs.size()) continue;
    parts_.push_back({&process, first, i + 1});
    first = i + 1;
    pages = 0;
  }
}

// One thread's share.
class PageFill::Worker {
 public:
  void fill(const Part& part);

 private:
  void take_process(const Process& process);
  void fill_batch(std::span<const Run> runs);
  void copy_fresh(const Run& run);
  void write_own(std::span<const Run> runs);
  void write_forced(std::span<const Run> runs);
  std::byte* place(const Run& run) { return buffer_.data() + (run.location.record - first_record_) * kPageSize; }

  const Process* process_ = nullptr;
  std::optional<PageStoreReader> reader_;
  UniqueFd mem_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kChunkPages * kPageSize);
  uint64_t first_record_ = 0;  // of the buffer
};

void PageFill::Worker::take_process(const Process& process) {
  if (process_ == &process) return;
  process_ = &process;
  reader_.emplace(process.reader->sibling());
  mem_.reset();
}

void PageFill::Worker::fill(const Part& part) {
  take_process(*part.process);
  const std::span<const Run> runs(part.process->runs);
  for (size_t i = part.first; i < part.last;) {
    const Run& first = runs[i];
    const auto end_of = [](const Run& run) { return run.location.record + run.pages; };
    size_t next = i + 1;
    for (; next < part.last && next - i < kMostRuns; ++next) {
      const Run &run = runs[next], &before = runs[next - 1];
      if (run.location.version != first.location.version || run.way != first.way ||
          run.location.record < end_of(before) || run.location.record > end_of(before) + kGapPages ||
          end_of(run) > first.location.record + kChunkPages)
        break;
    }
    fill_batch(runs.subspan(i, next - i));
    i = next;
  }
}

// Runs of one file, ascending and with small gaps, a chunk altogether.
void PageFill::Worker::fill_batch(std::span<const Run> runs) {
  const Run &first = runs.front(), &last = runs.back();
  first_record_ = first.location.record;
  const uint64_t pages = last.location.record + last.pages - first_record_;
  reader_->read_unverified(first.location, pages, std::span(buffer_).first(pages * kPageSize));
  for (const Run& run : runs) reader_->verify(run.location, {place(run), run.pages * kPageSize});
  if (first.way == Way::kFresh) {
    for (const Run& run : runs) copy_fresh(run);
  } else if (first.way == Way::kWritable) {
    write_own(runs);
  } else {
    write_forced(runs);
  }
}

void PageFill::Worker::copy_fresh(const Run& run) {
  uffdio_copy request{};
  request.dst = run.address;
  request.src = reinterpret_cast<uint64_t>(place(run));
  request.len = run.pages * kPageSize;
  while (::ioctl(process_->uffd.get(), UFFDIO_COPY, &request) != 0) {
    const int why = errno;
    const auto done = request.copy > 0 ? static_cast<uint64_t>(request.copy) : 0;
    if ((why != EAGAIN && why != EINTR) || done >= request.len) {
      throw Error(why == ESRCH ? ErrorKind::kGone : ErrorKind::kSystem,
                  fmt::format("cannot put {} pages at {:x} of process {}: {}", run.pages, run.address, process_->pid,
                              errno_text(why)),
                  why);
    }
    request.dst += done;
    request.src += done;
    request.len -= done;
    request.copy = 0;
  }
}

void PageFill::Worker::write_own(std::span<const Run> runs) {
  std::array<iovec, kMostRuns> here, there;
  size_t count = 0, total = 0;
  for (const Run& run : runs) {
    const size_t bytes = run.pages * kPageSize;
    here[count] = {place(run), bytes};
    there[count++] = {reinterpret_cast<void*>(run.address), bytes};
    total += bytes;
  }
  const ssize_t done = ::process_vm_writev(process_->pid, here.data(), count, there.data(), count, 0);
  if (done == static_cast<ssize_t>(total)) return;
  const int why = done < 0 ? errno : EFAULT;
  throw Error(why == ESRCH ? ErrorKind::kGone : ErrorKind::kSystem,
              fmt::format("cannot write {} bytes of memory of process {} from {:x} on: {}", total, process_->pid,
                          runs.front().address, errno_text(why)),
              why);
}

// Mappings got their final protection at once: changing it later would split and account them anew, and reserves of
// terabytes could not be made writable for a moment. /proc/PID/mem writes where the process cannot.
void PageFill::Worker::write_forced(std::span<const Run> runs) {
  if (!mem_) {
    mem_.reset(::open(fmt::format("/proc/{}/mem", process_->pid).c_str(), O_RDWR | O_CLOEXEC));
    if (!mem_) throw_errno("cannot open /proc/{}/mem", process_->pid);
  }
  for (const Run& run : runs) {
    const size_t bytes = run.pages * kPageSize;
    for (size_t at = 0; at < bytes;) {
      const ssize_t done = ::pwrite(mem_.get(), place(run) + at, bytes - at, static_cast<off_t>(run.address + at));
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) throw_errno("cannot write memory of process {} at {:x}", process_->pid, run.address + at);
      at += static_cast<size_t>(done);
    }
  }
}

void PageFill::run() {
  uint64_t pages = 0;
  for (const Process& process : processes_)
    for (const Run& run : process.runs) pages += run.pages;
  const auto clear = [this] {
    parts_.clear();
    processes_.clear();
  };
  try {
    share_out(parts_.size(), pages / kWorthThread + 1, [this] {
      return [this, worker = std::make_shared<Worker>()](size_t part) { worker->fill(parts_[part]); };
    });
  } catch (...) {
    clear();
    throw;
  }
  clear();
}

}  // namespace icp

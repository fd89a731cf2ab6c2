// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/page_copier.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>

#include "engine/base/error.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr size_t kMaxRanges = 512;  // of IOV_MAX 1024

}  // namespace

void PageCopier::copy(std::span<const Range> ranges, const Allocate& allocate, const Deliver& deliver,
                      std::vector<Range>& missing) {
  std::vector<Range> batch;
  size_t bytes = 0;
  const auto flush = [&] {
    if (batch.empty()) return;
    copy_batch(batch, allocate(bytes), deliver, missing);
    batch.clear();
    bytes = 0;
  };
  for (Range range : ranges) {
    while (range.start < range.end) {
      const uint64_t part = std::min<uint64_t>(range.bytes(), kChunk - bytes);
      batch.push_back({range.start, range.start + part});
      bytes += part;
      range.start += part;
      if (bytes == kChunk || batch.size() == kMaxRanges) flush();
    }
  }
  flush();
}

// Cut where pages that only this process maps and others meet.
std::vector<PageCopier::Part> PageCopier::parts_of(std::span<const Range> batch) {
  std::vector<Part> parts;
  parts.reserve(batch.size());
  if (!has_relatives_) {
    for (const Range& range : batch) parts.push_back({range, false});
    return parts;
  }
  if (!pagemap_) pagemap_.emplace(pid_);
  constexpr uint64_t kOwn = kPagemapPresent | kPagemapExclusive;
  for (const Range& range : batch) {
    const size_t first = parts.size();
    pagemap_->read(range.start, range.end, [&](uint64_t at, std::span<const uint64_t> entries) {
      for (const uint64_t entry : entries) {
        const bool shared = (entry & kOwn) != kOwn;
        if (parts.size() > first && parts.back().shared == shared) {
          parts.back().range.end += kPageSize;
        } else {
          parts.push_back({{at, at + kPageSize}, shared});
        }
        at += kPageSize;
      }
    });
  }
  return parts;
}

void PageCopier::copy_batch(std::span<const Range> batch, std::byte* to, const Deliver& deliver,
                            std::vector<Range>& missing) {
  std::array<iovec, kMaxRanges> remote;
  const std::vector<Part> parts = parts_of(batch);
  std::vector<Piece> pieces;
  pieces.reserve(parts.size());
  for (size_t next = 0; next < parts.size();) {
    size_t wanted = 0, count = 0;
    for (; count < kMaxRanges && next + count < parts.size() && !parts[next + count].shared; ++count) {
      const Range& range = parts[next + count].range;
      remote[count] = {reinterpret_cast<void*>(range.start), range.bytes()};
      wanted += range.bytes();
    }
    if (count > 0) {
      const iovec local{to, wanted};
      const ssize_t got = ::process_vm_readv(pid_, &local, 1, remote.data(), count, 0);
      if (got < 0 && errno == ESRCH) throw_error(ErrorKind::kGone, "process {} has ended", pid_);
      if (got < 0 && errno != EFAULT) throw_errno("cannot read memory of process {}", pid_);
      // What was read ends at the first page that cannot be read. Ranges before that are whole.
      size_t left = got < 0 ? 0 : static_cast<size_t>(got);
      for (; count > 0 && left >= parts[next].range.bytes(); ++next, --count) {
        pieces.push_back({parts[next].range.start, {to, parts[next].range.bytes()}});
        to += parts[next].range.bytes();
        left -= parts[next].range.bytes();
      }
      if (count == 0) continue;
    }
    // A shared one, or the one it stopped in, by the other way.
    Range range = parts[next++].range;
    while (range.start < range.end) {
      const size_t forced = read_forced(range, to);
      if (forced > 0) pieces.push_back({range.start, {to, forced}, has_relatives_});
      to += forced;
      range.start += forced;
      if (range.start == range.end) break;
      append_range(missing, {range.start, range.start + kPageSize});
      range.start += kPageSize;
    }
  }
  if (!pieces.empty()) deliver(pieces);
}

// Whole pages read from the start of the range; 0 when the first one cannot be read.
size_t PageCopier::read_forced(Range range, std::byte* to) {
  if (!mem_) {
    mem_.reset(::open(fmt::format("/proc/{}/mem", pid_).c_str(), O_RDONLY | O_CLOEXEC));
    if (!mem_ && (errno == ENOENT || errno == ESRCH)) throw_error(ErrorKind::kGone, "process {} has ended", pid_);
    if (!mem_) throw_errno("cannot open /proc/{}/mem", pid_);
  }
  size_t done = 0;
  while (done < range.bytes()) {
    const ssize_t got = ::pread(mem_.get(), to + done, range.bytes() - done, static_cast<off_t>(range.start + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  return page_down(done);
}

}  // namespace icp

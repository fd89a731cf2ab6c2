// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/tracker/pagemap_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "engine/base/error.h"
#include "engine/trace/remote_addr.h"

namespace icp {

PagemapReader::PagemapReader(pid_t pid) : pid_(pid) {
  pagemap_.reset(::open(fmt::format("/proc/{}/pagemap", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (pagemap_) return;
  if (errno == ENOENT || errno == ESRCH) throw_error(ErrorKind::kGone, "process {} has ended", pid);
  throw_errno("cannot open /proc/{}/pagemap", pid);
}

void PagemapReader::read(uint64_t start, uint64_t end,
                         const std::function<void(uint64_t, std::span<const uint64_t>)>& visit) const {
  std::vector<uint64_t> entries(std::min<uint64_t>((end - start) / kPageSize, 1 << 16));
  while (start < end) {
    const size_t want = std::min<uint64_t>((end - start) / kPageSize, entries.size()) * sizeof(uint64_t);
    const ssize_t got =
        ::pread(pagemap_.get(), entries.data(), want, static_cast<off_t>(start / kPageSize * sizeof(uint64_t)));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("cannot read the page table of process {} at {:x}", pid_, start);
    const size_t count = static_cast<size_t>(got) / sizeof(uint64_t);
    if (count == 0) throw_error(ErrorKind::kGone, "process {} has ended or started another program", pid_);
    visit(start, {entries.data(), count});
    start += count * kPageSize;
  }
}

}  // namespace icp

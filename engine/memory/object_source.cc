// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/object_source.h"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "engine/base/error.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

class Descriptor final : public ObjectSource {
 public:
  explicit Descriptor(UniqueFd fd) : fd_(std::move(fd)) {
    if (::fstat(fd_.get(), &status_) != 0) throw_errno("cannot look at shared memory");
  }
  int fd() const override { return fd_.get(); }
  void read(uint64_t offset, std::span<std::byte> to) const override {
    size_t done = 0;
    while (done < to.size()) {
      const ssize_t got = ::pread(fd_.get(), to.data() + done, to.size() - done, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw_errno("cannot read {}", name_);
      if (got == 0) break;
      done += static_cast<size_t>(got);
    }
    std::fill(to.begin() + static_cast<ptrdiff_t>(done), to.end(), std::byte{0});
  }
  std::optional<uint64_t> next_data(uint64_t at) const override {
    const off_t data = ::lseek(fd_.get(), static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return std::nullopt;
    if (data < 0) throw_errno("cannot look for data in {}", name_);
    return static_cast<uint64_t>(data);
  }

 private:
  UniqueFd fd_;
};

// Pages beyond the object's end, or unmapped since, cannot be read, and read as zeros. False when the process has
// ended.
bool read_memory(int mem, uint64_t address, std::span<std::byte> to) {
  for (size_t done = 0; done < to.size();) {
    const ssize_t got = ::pread(mem, to.data() + done, to.size() - done, static_cast<off_t>(address + done));
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) return false;
    if (got > 0) {
      done += static_cast<size_t>(got);
      continue;
    }
    if (errno != EIO && errno != EFAULT) throw_errno("cannot read shared memory");
    const size_t page = std::min<size_t>(to.size() - done, kPageSize - (address + done) % kPageSize);
    std::fill_n(to.begin() + static_cast<ptrdiff_t>(done), page, std::byte{0});
    done += page;
  }
  return true;
}

[[noreturn]] void throw_ended() {
  throw Error(ErrorKind::kBusy, "a process ended while the shared memory that it alone mapped was read", 0,
              "try again in a moment");
}

class Mapped final : public ObjectSource {
 public:
  void add_mapping(pid_t pid, const MapsEntry& maps) override {
    const uint64_t end = maps.offset + (maps.end - maps.start);
    status_.st_size = std::max(status_.st_size, static_cast<off_t>(end));
    status_.st_blocks = status_.st_size / 512;
    const auto known = std::count_if(views_.begin(), views_.end(), [&](const View& view) {
      return view.offset <= maps.offset && end <= view.offset + view.bytes;
    });
    if (known >= kEnough) return;
    UniqueFd mem(::open(fmt::format("/proc/{}/mem", pid).c_str(), O_RDONLY | O_CLOEXEC));
    if (!mem) throw_errno("cannot open the memory of process {}", pid);
    views_.push_back({maps.offset, end - maps.offset, maps.start, std::move(mem)});
  }
  void begin(pid_t pid, const MapsEntry& maps) {
    status_.st_dev = makedev(maps.dev_major, maps.dev_minor);
    status_.st_ino = maps.ino;
    status_.st_mode = S_IFREG | 0777;
    status_.st_uid = ::geteuid();
    status_.st_gid = ::getegid();
    ::clock_gettime(CLOCK_REALTIME, &status_.st_ctim);
    add_mapping(pid, maps);
  }
  void read(uint64_t offset, std::span<std::byte> to) const override {
    const uint64_t end = offset + to.size();
    for (uint64_t at = offset; at < end;) {
      uint64_t next = end;  // of what no view has
      bool mapped = false, done = false;
      for (const View& view : views_) {
        if (view.offset > at) next = std::min(next, view.offset);
        if (view.offset > at || at >= view.offset + view.bytes) continue;
        mapped = true;
        const uint64_t until = std::min(end, view.offset + view.bytes);
        done = read_memory(view.mem.get(), view.address + (at - view.offset), to.subspan(at - offset, until - at));
        if (done) next = until;
        if (done) break;
      }
      if (mapped && !done) throw_ended();
      if (!mapped) std::fill_n(to.begin() + static_cast<ptrdiff_t>(at - offset), next - at, std::byte{0});
      at = next;
    }
  }
  std::optional<uint64_t> next_data(uint64_t at) const override {
    std::optional<uint64_t> next;
    for (const View& view : views_) {
      if (view.offset + view.bytes <= at) continue;
      const uint64_t from = std::max(at, view.offset);
      if (!next || from < *next) next = from;
    }
    return next;
  }

 private:
  struct View {
    uint64_t offset, bytes, address;
    UniqueFd mem;
  };
  static constexpr int kEnough = 4;  // processes to read one place from: some may end meanwhile
  std::vector<View> views_;
};

class Segment final : public ObjectSource {
 public:
  Segment(SegmentMemory memory, int id) : memory_(std::move(memory)) {
    status_.st_ino = static_cast<ino_t>(id);
    status_.st_mode = S_IFREG | 0600;
    status_.st_size = static_cast<off_t>(memory_.bytes);
    status_.st_blocks = status_.st_size / 512;
    ::clock_gettime(CLOCK_REALTIME, &status_.st_ctim);
  }
  void read(uint64_t offset, std::span<std::byte> to) const override {
    const uint64_t end = page_up(memory_.bytes);
    const size_t there = offset < end ? std::min<uint64_t>(to.size(), end - offset) : 0;
    if (!read_memory(memory_.fd.get(), memory_.start + offset, to.first(there))) throw_ended();
    std::fill(to.begin() + static_cast<ptrdiff_t>(there), to.end(), std::byte{0});
  }
  std::optional<uint64_t> next_data(uint64_t at) const override {
    return at < memory_.bytes ? std::optional(at) : std::nullopt;
  }

 private:
  SegmentMemory memory_;
};

}  // namespace

std::unique_ptr<ObjectSource> ObjectSource::of_descriptor(UniqueFd fd) {
  return std::make_unique<Descriptor>(std::move(fd));
}

std::unique_ptr<ObjectSource> ObjectSource::of_mapping(pid_t pid, const MapsEntry& maps) {
  auto source = std::make_unique<Mapped>();
  source->begin(pid, maps);
  return source;
}

std::unique_ptr<ObjectSource> ObjectSource::of_segment(SegmentMemory segment, int id) {
  if (segment.start == 0) return of_descriptor(std::move(segment.fd));
  return std::make_unique<Segment>(std::move(segment), id);
}

}  // namespace icp

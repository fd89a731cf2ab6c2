// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/lazy_fill.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <list>
#include <optional>
#include <thread>

#include "engine/base/error.h"
#include "engine/base/mutex.h"

namespace icp {
namespace {

constexpr uint64_t kChunkPages = 64;         // background: 256 KiB, after which waiting processes are looked after
constexpr uint64_t kAroundPages = 16;        // read along with a page that is waited for
constexpr uint64_t kSliceBytes = 256 << 20;  // of memory, whose runs are put in order at a time
constexpr uint64_t kFeatures =
    UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

bool enable(int uffd) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatures;
  return ::ioctl(uffd, UFFDIO_API, &api) == 0;
}

UniqueFd open_pidfd(pid_t pid) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd) throw_errno("cannot open process {}", pid);
  return fd;
}

// Runs in a process of its own that shares our descriptors but not our memory. As long as it lives the userfaultfds
// stay open, so that nobody reads zeros: it waits for the agent's end, kills the capsule, waits until all of it is
// gone, and ends. Only plain system calls: other threads may have held locks when it was made.
[[noreturn]] void guard(int agent, int init) {
  ::prctl(PR_SET_NAME, "icp-guard");
  pollfd ended{agent, POLLIN, 0};
  while (::poll(&ended, 1, -1) <= 0) {
  }
  ::syscall(SYS_pidfd_send_signal, init, SIGKILL, nullptr, 0);
  ended.fd = init;
  while (::poll(&ended, 1, -1) <= 0) {
  }
  ::syscall(SYS_exit_group, 0);
  __builtin_unreachable();
}

// Where a part of the image's memory is now. `from` is its address in the image.
struct Area {
  uint64_t start, end, from;
};

struct Run {
  uint64_t address;  // in the image
  uint64_t pages;
  PageLocation location;
};

// What the background reader has to do in an address space, and how far it is. The order is that of the files within a
// slice of memory: ordering all of it first would make the processes wait for pages of theirs. A version's records
// mostly lie in the order of their addresses, so that files are read from front to back all the same.
struct Background {
  std::shared_ptr<const std::vector<Range>> slices;
  size_t next_slice = 0;
  std::shared_ptr<const std::vector<Run>> runs;  // of the slice before
  size_t next_run = 0;

  // The run to be filled now, until done() with it; null: all is there.
  const Run* current(const PageIndex& index) {
    while (!runs || next_run == runs->size()) {
      if (next_slice == slices->size()) return nullptr;
      runs = std::make_shared<const std::vector<Run>>(ordered_runs(index, (*slices)[next_slice++]));
      next_run = 0;
    }
    return &(*runs)[next_run];
  }
  void done() { ++next_run; }

 private:
  static std::vector<Run> ordered_runs(const PageIndex& index, const Range& slice) {
    std::vector<Run> runs;
    const auto add = [&runs](uint64_t address, uint64_t pages, PageLocation location) {
      while (pages > 0) {
        const uint64_t count = std::min(pages, kChunkPages);
        runs.push_back({address, count, location});
        address += count * kPageSize;
        location.record += count;
        pages -= count;
      }
    };
    index.for_each_run_in_file_order(slice.start, slice.end, add);
    return runs;
  }
};

std::vector<Range> sliced(const std::vector<Range>& parts) {
  std::vector<Range> slices;
  for (const Range& part : parts) {
    for (uint64_t start = part.start; start < part.end; start += kSliceBytes) {
      slices.push_back({start, std::min(part.end, start + kSliceBytes)});
    }
  }
  return slices;
}

// One address space.
struct Space {
  UniqueFd uffd;
  std::shared_ptr<PageStoreReader> reader;
  Background background;
  std::vector<Area> areas;
  bool gone = false;
  uint64_t changes = 0;  // of areas

  const Area* area_of(uint64_t address) const {
    for (const Area& area : areas) {
      if (area.start <= address && address < area.end) return &area;
    }
    return nullptr;
  }
  // [start, end) is nothing of the image's any more.
  void forget(uint64_t start, uint64_t end) {
    ++changes;
    std::vector<Area> rest;
    for (const Area& area : areas) {
      if (area.end <= start || end <= area.start) {
        rest.push_back(area);
        continue;
      }
      if (area.start < start) rest.push_back({area.start, start, area.from});
      if (end < area.end) rest.push_back({end, area.end, area.from + (end - area.start)});
    }
    areas = std::move(rest);
  }
  void move(uint64_t from, uint64_t to, uint64_t length) {
    std::vector<Area> moved;
    for (const Area& area : areas) {
      const uint64_t start = std::max(area.start, from), end = std::min(area.end, from + length);
      if (start < end) moved.push_back({start - from + to, end - from + to, area.from + (start - area.start)});
    }
    forget(from, from + length);
    forget(to, to + length);
    areas.insert(areas.end(), moved.begin(), moved.end());
  }
};

}  // namespace

bool lazy_fill_available() {
  const UniqueFd uffd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  return uffd && enable(uffd.get());
}

struct LazyFill::Impl {
  UniqueFd init, self;
  pid_t guard_pid = 0;
  std::thread thread;
  mutable Mutex mutex;
  Condition changed;
  std::list<Space> added ICP_GUARDED_BY(mutex);  // not taken over by the thread yet
  bool started ICP_GUARDED_BY(mutex) = false, finished ICP_GUARDED_BY(mutex) = false;
  std::atomic<bool> stop = false;
  std::optional<Error> error ICP_GUARDED_BY(mutex);

  // The thread's own.
  std::list<Space> spaces;
  std::vector<std::byte> buffer = std::vector<std::byte>(kChunkPages * kPageSize);

  void start_guard();
  void end_guard();
  void run();
  bool serve();
  void take_over();
  void handle_events(Space& space);
  void handle(Space& space, const uffd_msg& message);
  void resolve(Space& space, uint64_t address);
  void fill_next(Space& space);
  void copy(Space& space, uint64_t to, const std::byte* from, uint64_t pages);
  void place(Space& space, uint64_t image_address, uint64_t pages);
};

void LazyFill::Impl::start_guard() {
  const auto pid = static_cast<pid_t>(::syscall(SYS_clone, CLONE_FILES, nullptr, nullptr, nullptr, nullptr));
  if (pid < 0) throw_errno("cannot make a process");
  if (pid == 0) guard(self.get(), init.get());
  guard_pid = pid;
}

void LazyFill::Impl::end_guard() {
  if (guard_pid == 0) return;
  ::kill(guard_pid, SIGKILL);
  while (::waitpid(guard_pid, nullptr, __WALL) < 0 && errno == EINTR) {
  }
  guard_pid = 0;
}

// Copies into place what is not there yet.
void LazyFill::Impl::copy(Space& space, uint64_t to, const std::byte* from, uint64_t pages) {
  uint64_t most = pages;  // in one go: a range must not cross from one mapping into another
  while (pages > 0 && !space.gone) {
    uffdio_copy request{};
    request.dst = to;
    request.src = reinterpret_cast<uint64_t>(from);
    request.len = std::min(most, pages) * kPageSize;
    const bool whole = ::ioctl(space.uffd.get(), UFFDIO_COPY, &request) == 0;
    const int why = errno;
    uint64_t done = request.copy > 0 ? static_cast<uint64_t>(request.copy) / kPageSize : 0;
    if (!whole && done == 0) {
      if (why == EAGAIN) {  // the mappings are changing: somebody waits until we have heard how
        const uint64_t changes = space.changes;
        handle_events(space);
        if (space.changes != changes) return;  // place() looks where it is now; a waiting process asks again
        continue;
      }
      if (why == ESRCH) {
        space.gone = true;
        return;
      }
      if (why == ENOENT && most > 1) {
        most = 1;
        continue;
      }
      if (why != EEXIST && why != ENOENT) {
        throw Error(ErrorKind::kSystem,
                    fmt::format("cannot put a page at {:x} of a restored process: {}", to, errno_text(why)), why);
      }
      if (why == EEXIST) {
        uffdio_range there{to, kPageSize};
        ::ioctl(space.uffd.get(), UFFDIO_WAKE, &there);
      }
      done = 1;
    }
    to += done * kPageSize;
    from += done * kPageSize;
    pages -= done;
  }
}

// Puts `pages` from the buffer, which belong at an address of the image, where that is now. Areas may change meanwhile.
void LazyFill::Impl::place(Space& space, uint64_t image_address, uint64_t pages) {
  for (uint64_t at = 0; at < pages && !space.gone;) {
    const uint64_t address = image_address + at * kPageSize;
    uint64_t length = 1;
    for (const Area& area : space.areas) {
      if (address < area.from || address >= area.from + (area.end - area.start)) continue;
      const uint64_t to = area.start + (address - area.from);
      length = std::min(pages - at, (area.end - to) / kPageSize);
      const uint64_t changes = space.changes;
      copy(space, to, buffer.data() + at * kPageSize, length);
      if (space.changes != changes) length = 0;  // once more; what is there stays
      break;
    }
    at += length;
  }
}

void LazyFill::Impl::resolve(Space& space, uint64_t address) {
  address = page_down(address);
  const Area* area = space.area_of(address);
  const uint64_t image_address = area == nullptr ? 0 : area->from + (address - area->start);
  const PageIndex& index = space.reader->index();
  const PageLocation location = area == nullptr ? PageLocation{} : index.find(image_address);
  if (location.version == 0) {
    uffdio_zeropage request{};
    request.range = {address, kPageSize};
    if (::ioctl(space.uffd.get(), UFFDIO_ZEROPAGE, &request) == 0) return;
    if (errno == ESRCH) space.gone = true;
    // EEXIST: somebody was faster. EAGAIN: mappings change; whoever waits is woken and asks again.
    ::ioctl(space.uffd.get(), UFFDIO_WAKE, &request.range);
    return;
  }
  uint64_t pages = 1;
  const uint64_t most = std::min(kAroundPages, (area->end - address) / kPageSize);
  while (pages < most &&
         index.find(image_address + pages * kPageSize) == PageLocation{location.version, location.record + pages}) {
    ++pages;
  }
  space.reader->read(location, pages, std::span(buffer).first(pages * kPageSize));
  copy(space, address, buffer.data(), pages);
  uffdio_range waiting{address, kPageSize};
  ::ioctl(space.uffd.get(), UFFDIO_WAKE, &waiting);  // if the copy gave up half-way, it is asked for again
}

void LazyFill::Impl::handle(Space& space, const uffd_msg& message) {
  switch (message.event) {
    case UFFD_EVENT_FORK: {
      // As far as the parent has come, the child has its pages.
      Space child;
      child.uffd.reset(static_cast<int>(message.arg.fork.ufd));
      child.reader = space.reader;
      child.background = space.background;
      child.areas = space.areas;
      spaces.push_back(std::move(child));
      break;
    }
    case UFFD_EVENT_REMAP:
      space.move(message.arg.remap.from, message.arg.remap.to, message.arg.remap.len);
      break;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      space.forget(message.arg.remove.start, message.arg.remove.end);
      break;
    default:
      break;
  }
}

void LazyFill::Impl::handle_events(Space& space) {
  uffd_msg message{};
  std::vector<uint64_t> waiting;
  while (!space.gone && ::read(space.uffd.get(), &message, sizeof message) == static_cast<ssize_t>(sizeof message)) {
    if (message.event == UFFD_EVENT_PAGEFAULT) {
      waiting.push_back(message.arg.pagefault.address);
    } else {
      handle(space, message);
    }
  }
  // Not before all events are read: who waits for us to read one would keep a copy from succeeding. The buffer may be
  // in use, for a copy that met an event: these pages are asked for again once they are woken.
  for (const uint64_t address : waiting) {
    uffdio_range there{page_down(address), kPageSize};
    ::ioctl(space.uffd.get(), UFFDIO_WAKE, &there);
  }
}

void LazyFill::Impl::fill_next(Space& space) {
  const Run* run = space.background.current(space.reader->index());
  if (run == nullptr) {
    space.gone = true;  // all there; what has no page reads as zeros from now on, as it should
    return;
  }
  space.reader->read(run->location, run->pages, std::span(buffer).first(run->pages * kPageSize));
  place(space, run->address, run->pages);
  space.background.done();  // not before: a child forked meanwhile does it once more
}

void LazyFill::Impl::take_over() {
  const MutexLock lock(mutex);
  spaces.splice(spaces.end(), added);
}

// One round: whoever waits, then a piece of the rest. False when there is nothing left to do.
bool LazyFill::Impl::serve() {
  take_over();
  if (spaces.empty()) return false;
  for (auto space = spaces.begin(); space != spaces.end(); ++space) {
    uffd_msg message{};
    while (!space->gone &&
           ::read(space->uffd.get(), &message, sizeof message) == static_cast<ssize_t>(sizeof message)) {
      if (message.event == UFFD_EVENT_PAGEFAULT) {
        resolve(*space, message.arg.pagefault.address);
      } else {
        handle(*space, message);
      }
    }
  }
  for (auto space = spaces.begin(); space != spaces.end();) {
    if (!space->gone) fill_next(*space);
    space = space->gone ? spaces.erase(space) : std::next(space);
  }
  return true;
}

void LazyFill::Impl::run() {
  std::optional<Error> failure;
  try {
    while (!stop && serve()) {
    }
  } catch (const Error& why) {
    failure = why;
  } catch (const std::exception& why) {
    failure = Error(ErrorKind::kSystem, why.what());
  }
  if (failure) {
    spdlog::error("{}: the restarted processes are ended, for a part of their memory cannot be had", failure->what());
    ::syscall(SYS_pidfd_send_signal, init.get(), SIGKILL, nullptr, 0);
    pollfd ended{init.get(), POLLIN, 0};
    while (::poll(&ended, 1, -1) <= 0) {
    }
  }
  if (stop) return;
  spaces.clear();  // after a failure not before the capsule is gone
  const MutexLock lock(mutex);
  error = failure;
  finished = true;
  changed.notify_all();
}

LazyFill::LazyFill(pid_t init) : impl_(std::make_unique<Impl>()) {
  impl_->init = open_pidfd(init);
  impl_->self = open_pidfd(::getpid());
  impl_->start_guard();
}

LazyFill::~LazyFill() {
  impl_->stop = true;
  if (impl_->thread.joinable()) impl_->thread.join();
  // Processes that wait for a page are on their way out: whoever ends the fill early has killed the capsule.
  if (!done()) {
    ::syscall(SYS_pidfd_send_signal, impl_->init.get(), SIGKILL, nullptr, 0);
    pollfd ended{impl_->init.get(), POLLIN, 0};
    ::poll(&ended, 1, 10'000);
  }
  impl_->spaces.clear();
  impl_->end_guard();
}

void LazyFill::add(RemoteProcess& process, PageStoreReader reader, std::vector<Range> parts) {
  const int64_t remote = process.call("userfaultfd", SYS_userfaultfd, {static_cast<uint64_t>(O_CLOEXEC | O_NONBLOCK)});
  Space space;
  space.uffd = process.take_away_fd(remote);
  if (!enable(space.uffd.get())) throw_errno("this kernel cannot restore memory lazily");
  for (const Range& part : parts) {
    uffdio_register range{};
    range.range = {part.start, part.bytes()};
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(space.uffd.get(), UFFDIO_REGISTER, &range) != 0) {
      throw_errno("cannot restore {:x}-{:x} of process {} lazily", part.start, part.end, process.pid());
    }
    space.areas.push_back({part.start, part.end, part.start});
  }
  normalise(parts);
  space.background.slices = std::make_shared<const std::vector<Range>>(sliced(parts));
  space.reader = std::make_shared<PageStoreReader>(std::move(reader));
  const MutexLock lock(impl_->mutex);
  impl_->added.push_back(std::move(space));
  if (!impl_->started || impl_->finished) {
    if (impl_->thread.joinable()) impl_->thread.join();
    impl_->finished = false;
    impl_->started = true;
    impl_->thread = std::thread([this] { impl_->run(); });
  }
}

bool LazyFill::done() const {
  const MutexLock lock(impl_->mutex);
  return !impl_->started || impl_->finished;
}

void LazyFill::wait() {
  const MutexLock lock(impl_->mutex);
  while (impl_->started && !impl_->finished) impl_->changed.wait(impl_->mutex);
  if (impl_->error) throw *impl_->error;
}

}  // namespace icp

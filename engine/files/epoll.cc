// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/epoll.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <exception>
#include <map>
#include <thread>

#include "engine/base/error.h"

namespace icp {
namespace {

// An item knows its file by the number under which it was added, which may mean another file by now. Its
// place among the items of that number identifies it for kcmp(2).
struct Slot {
  EpollLine line;
  uint32_t place = 0;
};

std::vector<Slot> slots_of(const Description& set) {
  std::vector<Slot> slots;
  std::map<int, uint32_t> places;
  for (const EpollLine& line : set.info.epoll_lines()) slots.push_back({line, places[line.fd]++});
  return slots;
}

bool is_file_of(FileScan& scan, const Description& set, const Slot& slot, const FdUse& use) {
  const FdUse& epoll = set.uses.front();
  kcmp_epoll_slot place{static_cast<uint32_t>(epoll.fd), static_cast<uint32_t>(slot.line.fd), slot.place};
  return ::syscall(SYS_kcmp, scan.table_tid(use.process), scan.table_tid(epoll.process), KCMP_EPOLL_TFD,
                   static_cast<unsigned long>(use.fd), &place) == 0;
}

Description* find_file(FileScan& scan, const Description& set, const Slot& slot) {
  for (const FdUse& use : set.uses) {  // nearly always: still the same number
    Description* likely = scan.find(use.process, slot.line.fd);
    if (likely && likely->stat.st_ino == slot.line.ino &&
        is_file_of(scan, set, slot, {use.process, slot.line.fd, false, {}})) {
      return likely;
    }
  }
  for (const auto& candidate : scan.descriptions()) {
    if (candidate->stat.st_ino != slot.line.ino) continue;
    for (const FdUse& use : candidate->uses) {  // outer streams may hold several descriptions
      if (is_file_of(scan, set, slot, use)) return candidate.get();
    }
  }
  return nullptr;
}

epoll_event event_of(const pb::EpollItem& item) {
  epoll_event event{};
  event.events = item.events();
  event.data.u64 = item.data();
  return event;
}

// The kernel always adds EPOLLERR and EPOLLHUP, and takes all events away when a one-shot item has fired.
bool has_fired(const pb::EpollItem& item) {
  return (item.events() & EPOLLONESHOT) && !(item.events() & (EPOLLERR | EPOLLHUP));
}

void control(const pb::OpenFile& set, const pb::EpollItem& item, int epoll, int op, epoll_event event) {
  if (::epoll_ctl(epoll, op, item.fd(), &event) == 0) return;
  if (errno == ENOMEM || errno == ENOSPC) throw_errno("cannot fill an epoll set");
  throw_bad_file(set, fmt::format("descriptor {} cannot be put into an epoll set: {}", item.fd(), errno_text(errno)));
}

// A one-shot item that has fired can be put in only by letting it fire, which most files are ready for
// (being writable); else it stays armed for errors and hangups.
void add_fired(const pb::OpenFile& set, const pb::EpollItem& item, int epoll) {
  epoll_event event = event_of(item);
  event.events |= EPOLLIN | EPOLLOUT | EPOLLRDHUP;
  control(set, item, epoll, EPOLL_CTL_ADD, event);
  epoll_event fired;
  if (::epoll_wait(epoll, &fired, 1, 0) == 1) return;
  control(set, item, epoll, EPOLL_CTL_MOD, event_of(item));
}

// Puts one item in. The set remembers the number, so the file has to have it in the calling thread's table
// for a moment; what had it before is put back.
void add_item(const pb::OpenFile& set, const pb::EpollItem& item, int epoll, int target) {
  if (item.fd() < 0) throw_bad_file(set, fmt::format("an epoll set with descriptor {}", item.fd()));
  UniqueFd saved;
  if (target != item.fd()) {
    saved.reset(::fcntl(item.fd(), F_DUPFD_CLOEXEC, 0));
    if (!saved && errno != EBADF) throw_errno("cannot fill an epoll set");
    if (::dup2(target, item.fd()) < 0) {
      throw_bad_file(set, fmt::format("an epoll set with descriptor {}: {}", item.fd(), errno_text(errno)));
    }
  }
  const int usable = epoll == item.fd() ? saved.get() : epoll;
  if (has_fired(item)) {
    add_fired(set, item, usable);
  } else {
    control(set, item, usable, EPOLL_CTL_ADD, event_of(item));
  }
  if (target == item.fd()) return;
  if (saved) {
    ::dup2(saved.get(), item.fd());
  } else {
    ::close(item.fd());
  }
}

bool belongs_to_process(const pb::OpenFile& file) { return file.has_pidfd() || file.has_signalfd(); }

// The set remembers the number, so the file gets it for a moment where another one has it now.
void add_inside(FinishContext& context, int set, int target, const pb::EpollItem& item) {
  RemoteProcess& remote = context.remote;
  const auto number = static_cast<uint64_t>(item.fd());
  int64_t flags = 0, saved = -1;
  if (item.fd() != target) {
    flags = remote.syscall(SYS_fcntl, {number, F_GETFD});
    if (flags >= 0) saved = remote.call("cannot keep a descriptor", SYS_fcntl, {number, F_DUPFD_CLOEXEC, 0});
    remote.call("cannot fill an epoll set", SYS_dup3, {static_cast<uint64_t>(target), number, O_CLOEXEC});
  }
  remote.reset_scratch();
  const RemoteAddr event = remote.stage_value(event_of(item));
  const auto epoll = static_cast<uint64_t>(set == item.fd() && saved >= 0 ? saved : set);
  const int64_t result = remote.syscall(SYS_epoll_ctl, {epoll, EPOLL_CTL_ADD, number, event.value});
  if (saved >= 0) {
    remote.call("cannot put a descriptor back", SYS_dup3,
                {static_cast<uint64_t>(saved), number, (flags & FD_CLOEXEC) != 0 ? O_CLOEXEC : 0ul});
    remote.call("cannot close a descriptor", SYS_close, {static_cast<uint64_t>(saved)});
  } else if (item.fd() != target) {
    remote.call("cannot close a descriptor", SYS_close, {number});
  }
  if (result == 0 || result == -EEXIST) return;
  throw_error(ErrorKind::kImage, "cannot put descriptor {} into an epoll set of process {}: {}", item.fd(),
              context.process.pid(), errno_text(static_cast<int>(-result)));
}

// Whether a process that has the set has the file, too.
bool together(const Description& set, const Description& file) {
  for (const FdUse& mine : set.uses)
    for (const FdUse& its : file.uses)
      if (mine.process == its.process) return true;
  return false;
}

class EpollKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kEpoll; }

  bool recognises(FileScan&, Description& description) const override {
    return description.target == "anon_inode:[eventpoll]";
  }

  void check(FileScan& scan, Descriptions descriptions) const override {
    for (Description* set : descriptions) {
      for (const Slot& slot : slots_of(*set)) {
        const Description* file = find_file(scan, *set, slot);
        if (file && file->target == "anon_inode:[signalfd]" && !together(*set, *file)) {
          scan.refuse(*set,
                      fmt::format("epoll set with a signalfd, added as descriptor {}, that only other processes have "
                                  "open",
                                  slot.line.fd),
                      "take the signalfd out of the set (EPOLL_CTL_DEL) before closing it", scan.checking());
        }
        if (file) continue;
        scan.refuse(*set,
                    fmt::format("epoll set with a file, added as descriptor {}, that no process of the job has "
                                "open any more",
                                slot.line.fd),
                    "take files out of the set (EPOLL_CTL_DEL) before closing them", scan.checking());
      }
    }
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions descriptions) const override {
    for (Description* set : descriptions) {
      pb::EpollFd& message = *set->message->mutable_epoll();
      for (const Slot& slot : slots_of(*set)) {
        const Description* file = find_file(scan, *set, slot);
        if (!file) continue;  // check() has refused it
        pb::EpollItem& item = *message.add_items();
        item.set_fd(slot.line.fd);
        item.set_events(slot.line.events);
        item.set_data(slot.line.data);
        item.set_file(file->id);
      }
    }
  }

  void create(RestoreContext& context, ImageFiles files) const override {
    for (const pb::OpenFile* file : files) {
      UniqueFd fd(::epoll_create1(EPOLL_CLOEXEC));
      if (!fd) throw_errno("cannot make an epoll set");
      context.put(*file, std::move(fd));
    }
  }

  // In a thread with a descriptor table of its own, where any number can be used.
  void connect(RestoreContext& context, ImageFiles files) const override {
    if (files.empty()) return;
    std::exception_ptr error;
    std::thread worker([&] {
      try {
        if (::unshare(CLONE_FILES) != 0) throw_errno("cannot get a descriptor table for a thread");
        for (const bool fired : {true, false}) {  // add_fired() must find no other ready item
          for (const pb::OpenFile* file : files) fill(context, *file, fired);
        }
      } catch (...) {
        error = std::current_exception();
      }
    });
    worker.join();
    if (error) std::rethrow_exception(error);
  }

  // Here what agents cannot add: a pidfd exists in the process only, and a signalfd in a set is woken by the signals of
  // the process that added it (fs/signalfd.c waits at current->sighand). That was, of those that have the set, most
  // likely the oldest one, which comes first; to the others the item is there already.
  void finish(FinishContext& context, const pb::FileDescriptor& descriptor, const pb::OpenFile& file) const override {
    for (const pb::EpollItem& item : file.epoll().items()) {
      const auto target = context.files.find(item.file());
      if (target == context.files.end() || !belongs_to_process(*target->second)) continue;
      const pb::FileDescriptor* have = nullptr;  // best: still at its number
      for (const pb::FileDescriptor& fd : context.process.fds())
        if (fd.file() == item.file() && (have == nullptr || fd.fd() == item.fd())) have = &fd;
      if (have != nullptr) add_inside(context, descriptor.fd(), have->fd(), item);
    }
  }

 private:
  static void fill(RestoreContext& context, const pb::OpenFile& file, bool fired) {
    for (const pb::EpollItem& item : file.epoll().items()) {
      if (has_fired(item) != fired || context.added_inside(item.file())) continue;
      const int target = context.get(item.file());
      if (target < 0) throw_bad_file(file, fmt::format("an epoll set with unknown file {}", item.file()));
      add_item(file, item, context.get(file.id()), target);
    }
  }
};

}  // namespace

const FileKind& epoll_kind() {
  static const EpollKind kind;
  return kind;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/pty.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <map>

#include "engine/base/error.h"
#include "engine/base/outlive.h"
#include "engine/files/pty_content.h"
#include "engine/files/pty_restore.h"

namespace icp {
namespace {

// Documentation/admin-guide/devices.txt
constexpr unsigned kFirstSlaveMajor = 136, kLastSlaveMajor = 143, kAlternateMajor = 5;
const dev_t kMasterDevice = makedev(kAlternateMajor, 2), kControllingDevice = makedev(kAlternateMajor, 0);

dev_t from_kernel(unsigned encoded) {  // new_decode_dev() of linux/kdev_t.h
  return makedev((encoded & 0xfff00) >> 8, (encoded & 0xff) | ((encoded >> 12) & 0xfff00));
}

std::optional<uint32_t> number_of_master(const Description& master) {
  const auto number = master.info.number("tty-index");
  if (!number || *number >= kMostPtys) return {};
  return static_cast<uint32_t>(*number);
}

// Both ends of one terminal, as far as the capsule has them.
struct Ends {
  Description* master = nullptr;
  std::vector<Description*> slaves;  // not those hung up
};

// /dev/tty is known by what it leads to, which takes a descriptor.
std::optional<uint32_t> number_of_slave(FileScan& scan, Description& slave) {
  if (slave.stat.st_rdev != kControllingDevice && scan.checking()) return pty_number(slave.stat.st_rdev);
  const int fd = scan.take(slave);
  const auto device = fd < 0 ? std::nullopt : terminal_device(fd);
  return device ? pty_number(*device) : std::nullopt;
}

Description* find_master(FileScan& scan, uint32_t number) {
  for (const auto& description : scan.descriptions())
    if (description->kind == &pty_master_kind() && number_of_master(*description) == number) return description.get();
  return nullptr;
}

// Of a terminal on which a task was started.
const Description* find_outer(FileScan& scan, dev_t device) {
  for (const auto& description : scan.descriptions())
    if (description->outer && S_ISCHR(description->stat.st_mode) && description->stat.st_rdev == device)
      return description.get();
  return nullptr;
}

short poll_events(int fd) {
  pollfd request{fd, POLLIN | POLLPRI, 0};
  return ::poll(&request, 1, 0) > 0 ? request.revents : short{0};
}

int flag_of(int fd, unsigned long request) {
  int value = 0;
  return ::ioctl(fd, request, &value) == 0 ? value : 0;
}

// ---- the master
// ------------------------------------------------------------------------------------------------------

class MasterKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kPtyMaster; }

  bool recognises(FileScan&, Description& description) const override {
    return S_ISCHR(description.stat.st_mode) && description.stat.st_rdev == kMasterDevice;
  }

  void check(FileScan& scan, Descriptions masters) const override {
    std::map<uint32_t, Description*> seen;
    for (Description* master : masters) {
      const auto number = number_of_master(*master);
      if ((master->info.flags & O_PATH) != 0 || !number) {
        scan.refuse(*master, fmt::format("descriptor of {} that is no terminal", master->target), "close it");
      } else if (!seen.emplace(*number, master).second) {
        scan.refuse(*master, fmt::format("second pseudo terminal with the number {}", *number),
                    "run the job without containers of its own inside");
      } else if (const int fd = scan.take(*master); fd >= 0) {
        check_state(scan, *master, *number, fd);
      }
    }
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions masters) const override {
    std::map<uint32_t, Ends> ends;
    for (Description* master : masters) ends[number_of_master(*master).value_or(kMostPtys)].master = master;
    for (const auto& description : scan.descriptions()) {
      if (description->kind != &pty_slave_kind()) continue;
      const auto number = number_of_slave(scan, *description);
      if (number && ends.count(*number) != 0) ends[*number].slaves.push_back(description.get());
    }
    for (const auto& [number, pair] : ends) capture_settings(scan, number, pair);
    run_to_the_end([&] {
      for (const auto& [number, pair] : ends) capture_content(scan, pair);
    });
  }

  void create(RestoreContext&, ImageFiles) const override {}  // FileRestore::create_terminals()
  void connect(RestoreContext& context, ImageFiles files) const override { settle_pty_masters(context, files); }

 private:
  static void check_state(FileScan& scan, Description& master, uint32_t number, int fd) {
    int discipline = 0;
    if (::ioctl(fd, TIOCGETD, &discipline) == 0 && discipline != N_TTY) {
      scan.refuse(master, fmt::format("pseudo terminal {} with line discipline {}", number, discipline),
                  "close it before a checkpoint");
    }
    const short events = poll_events(fd);
    const bool unopened = (events & POLLHUP) == 0 && !has_slave(scan, number);
    // Both pass when the program reads; neither could be given back.
    if (unopened && (events & POLLIN) != 0)
      scan.refuse(master, fmt::format("pseudo terminal {} with input for a program that has not opened it yet", number),
                  "try again in a moment", true);
    else if ((events & POLLPRI) != 0)
      scan.refuse(master, fmt::format("pseudo terminal {} with a change of its state that is not read yet", number),
                  "try again in a moment", true);
  }

  static bool has_slave(FileScan& scan, uint32_t number) {
    return std::any_of(scan.descriptions().begin(), scan.descriptions().end(), [&](const auto& description) {
      return description->kind == &pty_slave_kind() && number_of_slave(scan, *description) == number;
    });
  }

  // A user cannot give it away.
  static void capture_access(const struct stat& status, pb::PtyMaster& message) {
    message.set_mode(status.st_mode & 07777);
    if (::geteuid() != 0) return;
    message.set_uid(status.st_uid);
    message.set_gid(status.st_gid);
  }

  static void capture_settings(FileScan& scan, uint32_t number, const Ends& ends) {
    const int fd = scan.take(*ends.master);
    pb::PtyMaster& message = *ends.master->message->mutable_pty_master();
    message.set_number(number);
    message.set_termios(settings_bytes(terminal_settings(fd)));
    winsize size{};
    if (::ioctl(fd, TIOCGWINSZ, &size) != 0) throw_errno("cannot read the size of {}", ends.master->target);
    message.set_rows(size.ws_row);
    message.set_columns(size.ws_col);
    message.set_width(size.ws_xpixel);
    message.set_height(size.ws_ypixel);
    message.set_packet(flag_of(fd, TIOCGPKT) != 0);
    message.set_locked(flag_of(fd, TIOCGPTLCK) != 0);
    message.set_exclusive_master(flag_of(fd, TIOCGEXCL) != 0);
    message.set_opened(!ends.slaves.empty() || (poll_events(fd) & POLLHUP) != 0);
    for (Description* slave : ends.slaves) {
      if (slave->stat.st_rdev != kControllingDevice) capture_access(slave->stat, message);
      message.set_exclusive(flag_of(scan.take(*slave), TIOCGEXCL) != 0);
    }
  }

  // A description of our own; one of the program's where that is not allowed (TIOCEXCL), whose flags are then changed
  // for the moment.
  static UniqueFd open_slave(FileScan& scan, const Ends& ends, bool locked) {
    const int master = scan.take(*ends.master);
    int lock = 0;
    if (locked) ::ioctl(master, TIOCSPTLCK, &lock);
    UniqueFd slave(::ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
    lock = 1;
    if (locked) ::ioctl(master, TIOCSPTLCK, &lock);
    if (slave) return slave;
    for (Description* use : ends.slaves)
      if (use->access() == O_RDWR) return UniqueFd(::fcntl(scan.take(*use), F_DUPFD_CLOEXEC, 0));
    throw_errno("cannot open the other end of {}", ends.master->target);
  }

  static void capture_content(FileScan& scan, const Ends& ends) {
    pb::PtyMaster& message = *ends.master->message->mutable_pty_master();
    if (!message.opened()) return;
    const int master = scan.take(*ends.master);
    const UniqueFd slave = open_slave(scan, ends, message.locked());
    if (struct stat status{}; message.mode() == 0 && ::fstat(slave.get(), &status) == 0)
      capture_access(status, message);
    const int flags = ::fcntl(slave.get(), F_GETFL);
    ::fcntl(slave.get(), F_SETFL, flags | O_NONBLOCK);
    PtyContent content = peek_pty(master, slave.get());
    ::fcntl(slave.get(), F_SETFL, flags);
    message.set_output(std::move(content.output));
    message.set_stopped(content.stopped);
    for (pb::PtyInput& line : content.input) *message.add_input() = std::move(line);
  }
};

// ---- the slave
// -------------------------------------------------------------------------------------------------------

class SlaveKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kPtySlave; }

  bool recognises(FileScan&, Description& description) const override {
    if (!S_ISCHR(description.stat.st_mode) || (description.info.flags & O_PATH) != 0) return false;
    return description.stat.st_rdev == kControllingDevice || pty_number(description.stat.st_rdev).has_value();
  }

  void check(FileScan& scan, Descriptions slaves) const override {
    for (Description* slave : slaves) {
      const int fd = scan.take(*slave);
      if (fd < 0) continue;  // closed meanwhile
      const auto device = terminal_device(fd);
      if (!device) continue;  // hung up
      const auto number = pty_number(*device);
      if ((number && find_master(scan, *number) != nullptr) || find_outer(scan, *device) != nullptr) continue;
      scan.refuse(*slave, fmt::format("terminal {}, whose other end is outside of the job", slave->target),
                  "start with stdin and stdout redirected, or under icp run or srun");
    }
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions slaves) const override {
    for (Description* slave : slaves) {
      pb::PtySlave& message = *slave->message->mutable_pty_slave();
      const auto device = terminal_device(scan.take(*slave));
      message.set_hung_up(!device);
      message.set_controlling(slave->stat.st_rdev == kControllingDevice);
      if (!device) continue;
      const auto number = pty_number(*device);
      if (number && find_master(scan, *number) != nullptr) {
        message.set_number(*number);
      } else if (const Description* outer = find_outer(scan, *device)) {
        message.mutable_outer()->set_outer(true);
        message.mutable_outer()->set_rank(outer->outer->rank);
        message.mutable_outer()->set_fd(outer->outer->fd);
      }
    }
  }

  void create(RestoreContext& context, ImageFiles files) const override { create_pty_slaves(context, files); }
};

}  // namespace

std::optional<uint32_t> pty_number(dev_t device) {
  if (::major(device) < kFirstSlaveMajor || ::major(device) > kLastSlaveMajor) return {};
  return ::minor(device);
}

dev_t pty_device(uint32_t number) { return makedev(kFirstSlaveMajor, number); }

std::optional<dev_t> terminal_device(int fd) {
  unsigned device = 0;
  if (::ioctl(fd, TIOCGDEV, &device) != 0) return {};
  return from_kernel(device);
}

dev_t device_of_tty_nr(int tty_nr) { return from_kernel(static_cast<unsigned>(tty_nr)); }

const FileKind& pty_master_kind() {
  static const MasterKind kind;
  return kind;
}

const FileKind& pty_slave_kind() {
  static const SlaveKind kind;
  return kind;
}

}  // namespace icp

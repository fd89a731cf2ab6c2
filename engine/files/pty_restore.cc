// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/pty_restore.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/files/pty.h"
#include "engine/files/pty_content.h"

namespace icp {
namespace {

constexpr size_t kMostContent = 256 << 10;          // bytes; the kernel's own limit is lower
constexpr unsigned kPtmxMajor = 5, kPtmxMinor = 2;  // TTYAUX_MAJOR of the kernel
constexpr int kSlaveFlags = O_ACCMODE | O_NONBLOCK | O_APPEND;

// A new pseudo terminal of the capsule's /dev/pts, as the user.
UniqueFd new_master(const RestoreContext& context) {
  const FsIdentity as_user(context.options.identity);
  const UniqueFd found = open_below(context.options.root_fd, "/dev/ptmx", O_PATH);
  struct stat status {};
  if (!found || ::fstat(found.get(), &status) != 0) throw_errno("cannot find /dev/ptmx");
  if (!S_ISCHR(status.st_mode) || status.st_rdev != ::makedev(kPtmxMajor, kPtmxMinor))
    throw_error(ErrorKind::kSystem, "/dev/ptmx is not the device that makes pseudo terminals");
  UniqueFd fd(::open(fmt::format("/proc/self/fd/{}", found.get()).c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!fd) throw_errno("cannot make a pseudo terminal with /dev/ptmx");
  return fd;
}

void set(int fd, unsigned long request, int value, const char* what) {
  if (::ioctl(fd, request, &value) != 0) throw_errno("cannot {} a pseudo terminal", what);
}

// O_CLOEXEC would stay among the flags of the description (ptm_open_peer()).
UniqueFd open_slave(int master, int flags) {
  UniqueFd slave(::ioctl(master, TIOCGPTPEER, (flags & kSlaveFlags) | O_NOCTTY));
  if (!slave || ::fcntl(slave.get(), F_SETFD, FD_CLOEXEC) != 0) throw_errno("cannot open a pseudo terminal");
  return slave;
}

// The kernel gives the lowest free number: those below are taken until it comes. Numbers ascend from call to call.
UniqueFd master_of_number(const RestoreContext& context, uint32_t number, std::vector<UniqueFd>& spare) {
  for (;;) {
    UniqueFd master = new_master(context);
    unsigned got = 0;
    if (::ioctl(master.get(), TIOCGPTN, &got) != 0) throw_errno("cannot read the number of a pseudo terminal");
    if (got == number) return master;
    if (got > number) {
      throw Error(
          ErrorKind::kRefused,
          fmt::format("cannot restore pseudo terminal {}: /dev/pts/{} is another program's here", number, number),
          EBUSY, "restart on another node, or when that program has ended");
    }
    spare.push_back(std::move(master));
  }
}

PtyContent content_of(const pb::PtyMaster& image) {
  return {image.output(), {image.input().begin(), image.input().end()}, image.stopped()};
}

void set_size(int master, const pb::PtyMaster& image) {
  const auto narrow = [](uint32_t value) { return static_cast<unsigned short>(std::min<uint32_t>(value, UINT16_MAX)); };
  const winsize size{narrow(image.rows()), narrow(image.columns()), narrow(image.width()), narrow(image.height())};
  if (::ioctl(master, TIOCSWINSZ, &size) != 0) throw_errno("cannot set the size of a pseudo terminal");
}

void restore_state(const RestoreContext& context, const pb::OpenFile& file, RestoredPty& pty) {
  const pb::PtyMaster& image = file.pty_master();
  const TerminalSettings settings = settings_from(image.termios());
  const PtyContent content = content_of(image);
  if (content.output.size() > kMostContent) throw_bad_file(file, "it holds more than any terminal does");
  set(pty.master, TIOCSPTLCK, 0, "unlock");
  set_size(pty.master, image);
  if (!image.opened()) {
    if (!content.output.empty() || !content.input.empty())
      throw_bad_file(file, "it holds data, though it has never been open");
    set_terminal_settings(pty.master, settings);
    return;
  }
  pty.slave = open_slave(pty.master, O_RDWR | O_NONBLOCK);
  {
    const FsIdentity as_user(context.options.identity);
    if (::fchmod(pty.slave.get(), image.mode() & 0777) != 0) throw_errno("cannot set the mode of a pseudo terminal");
    if (image.has_uid() && context.options.identity.uid == 0 &&
        ::fchown(pty.slave.get(), image.uid(), image.gid()) != 0)
      throw_errno("cannot set the owner of a pseudo terminal");
  }
  fill_pty(pty.master, pty.slave.get(), settings, content);
}

// What a slave is that has been hung up: the one of a terminal without a master.
UniqueFd dead_slave(const RestoreContext& context, int flags) {
  const UniqueFd master = new_master(context);
  set(master.get(), TIOCSPTLCK, 0, "unlock");
  return open_slave(master.get(), flags);
}

UniqueFd create_slave(const RestoreContext& context, const pb::OpenFile& file) {
  const pb::PtySlave& image = file.pty_slave();
  const int flags = static_cast<int>(file.flags());
  if (image.hung_up()) return dead_slave(context, flags);
  if (image.controlling() && context.options.open_controlling)
    if (UniqueFd fd = context.options.open_controlling(file)) return fd;
  if (image.has_outer()) {  // no process has it as its controlling terminal any more
    const auto task = context.options.outer.find(image.outer().rank());
    if (task == context.options.outer.end() || image.outer().fd() < 0 || image.outer().fd() > 2)
      throw_bad_file(file, "there is no such stream in this step");
    UniqueFd fd(::fcntl(task->second[static_cast<size_t>(image.outer().fd())], F_DUPFD_CLOEXEC, 0));
    if (!fd) throw_errno("cannot use stream {} of task {}", image.outer().fd(), image.outer().rank());
    return fd;
  }
  const auto pty = context.ptys.find(image.number());
  if (pty == context.ptys.end() || !pty->second.slave)
    throw_bad_file(file, fmt::format("the image has no pseudo terminal {} that is open", image.number()));
  return open_slave(pty->second.master, flags);
}

}  // namespace

bool wants_own_ptys(const pb::Capsule& capsule) {
  bool masters = false, outer = false, taken = false;
  for (const pb::OpenFile& file : capsule.files()) {
    outer |= file.has_pty_slave() && file.pty_slave().has_outer();
    if (!file.has_pty_master()) continue;
    masters = true;
    taken |= ::access(fmt::format("/dev/pts/{}", file.pty_master().number()).c_str(), F_OK) == 0;
  }
  return masters && (taken || !outer);
}

void create_pty_masters(RestoreContext& context, ImageFiles files) {
  std::vector<const pb::OpenFile*> sorted(files.begin(), files.end());
  std::sort(sorted.begin(), sorted.end(), [](const pb::OpenFile* a, const pb::OpenFile* b) {
    return a->pty_master().number() < b->pty_master().number();
  });
  std::vector<UniqueFd> spare;
  for (const pb::OpenFile* file : sorted) {
    const uint32_t number = file->pty_master().number();
    if (number >= kMostPtys) throw_bad_file(*file, fmt::format("it has number {}", number));
    if (context.ptys.count(number) != 0) throw_bad_file(*file, fmt::format("two terminals have number {}", number));
    UniqueFd master = master_of_number(context, number, spare);
    RestoredPty pty{master.get(), {}};
    restore_state(context, *file, pty);
    context.put(*file, std::move(master));
    context.ptys.emplace(number, std::move(pty));
  }
}

void create_pty_slaves(RestoreContext& context, ImageFiles files) {
  for (const pb::OpenFile* file : files) context.put(*file, create_slave(context, *file));
}

void settle_pty_masters(RestoreContext& context, ImageFiles files) {
  for (const pb::OpenFile* file : files) {
    const pb::PtyMaster& image = file->pty_master();
    const RestoredPty& pty = context.ptys.at(image.number());
    if (image.packet()) set(pty.master, TIOCPKT, 1, "change the mode of");
    if (image.exclusive() && pty.slave && ::ioctl(pty.slave.get(), TIOCEXCL) != 0)
      throw_errno("cannot make a pseudo terminal exclusive");
    if (image.exclusive_master() && ::ioctl(pty.master, TIOCEXCL) != 0)
      throw_errno("cannot make a pseudo terminal exclusive");
    if (image.locked()) set(pty.master, TIOCSPTLCK, 1, "lock");
  }
  // Not before: it may be somebody's controlling terminal without being open anywhere.
  context.later([&context] {
    for (auto& [number, pty] : context.ptys) pty.slave.reset();
  });
}

}  // namespace icp

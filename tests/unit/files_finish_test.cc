// SPDX-License-Identifier: GPL-2.0-or-later
// What has to be done inside a process: POSIX locks, owners, pidfds and epoll sets that watch them.
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "engine/files/fd_info.h"
#include "files_test_util.h"

namespace icp::test {
namespace {

// A process that holds the restored descriptors at their numbers, as the restore of a process leaves it.
class Holder {
 public:
  Holder(const Captured& captured, FileRestore& restore) {
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    std::vector<std::pair<int, int>> moves;
    for (const pb::FileDescriptor& fd : captured.capsule.processes(0).fds()) {
      const int local = restore.local_fd(fd.file());
      if (local >= 0) moves.emplace_back(::fcntl(local, F_DUPFD, 500), fd.fd());
    }
    ::close_range(0, 499, 0);
    for (const auto& [from, to] : moves) ::dup2(from, to);
    ::close_range(500, ~0u, 0);
    ::prctl(PR_SET_NAME, "ready");
    for (;;) ::pause();
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  ~Holder() {
    if (pid_ <= 0) return;  // kill(-1) is everybody
    ::kill(pid_, SIGKILL);
    if (thread_) {
      thread_->forget_ended();
    } else {
      ::waitpid(pid_, nullptr, 0);
    }
  }
  pid_t pid() const { return pid_; }
  // Waits until the descriptors are in place, then runs finish_process().
  void finish(const Captured& captured, FileRestore& restore) {
    for (int i = 0; i < 2000 && read_proc(pid_, "comm") != "ready\n"; i++) ::usleep(1000);
    // It stays stopped until it is killed: its registers are those of the last call.
    thread_.emplace(Tracee::seize(pid_));
    thread_->interrupt();
    thread_->wait_stopped();
    RemoteProcess remote(*thread_, pid_, find_syscall_instruction(pid_));
    remote.map_scratch(4096);
    restore.finish_process(remote, captured.capsule.processes(0));
  }

 private:
  pid_t pid_;
  std::optional<Tracee> thread_;
};

std::string info_of(pid_t pid, int fd) {
  return content("/proc/" + std::to_string(pid) + "/fdinfo/" + std::to_string(fd));
}

TEST(Finish, LocksAndOwners) {
  TempDir dir("/tmp");
  const std::string path = dir.write("lock", "0123456789");
  Captured captured;
  {
    Child child([&] {
      must(::open(path.c_str(), O_RDWR) == 3);
      struct flock part {};
      part.l_type = F_WRLCK, part.l_start = 2, part.l_len = 3;
      must(::fcntl(3, F_SETLK, &part) == 0);
      int pair[2];
      must(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
      must(::fcntl(4, F_SETOWN, ::getpid()) == 0 && ::fcntl(4, F_SETSIG, SIGUSR2) == 0);
      must(::fcntl(4, F_SETFL, O_ASYNC | O_NONBLOCK) == 0 && ::fcntl(5, F_SETOWN, -::getpgrp()) == 0);
    });
    captured = capture(child);
    EXPECT_EQ(captured.file(4).owner_pid(), child.pid());
    EXPECT_EQ(captured.file(5).owner_type(), F_OWNER_PGRP);
  }
  Restored restored(captured);
  Holder holder(captured, *restored);
  // The owner in the image is a pid of the capsule: here, the new process.
  captured.mutable_file(4).set_owner_pid(holder.pid());
  captured.mutable_file(5).clear_owner_pid();
  holder.finish(captured, *restored);
  const UniqueFd other(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  struct flock probe {};
  probe.l_type = F_WRLCK;
  ASSERT_EQ(::fcntl(other.get(), F_GETLK, &probe), 0);
  EXPECT_EQ(probe.l_pid, holder.pid());
  EXPECT_EQ(probe.l_start, 2);
  EXPECT_EQ(::fcntl(restored.fd(4), F_GETOWN), holder.pid());
  EXPECT_EQ(::fcntl(restored.fd(4), F_GETSIG), SIGUSR2);
  EXPECT_EQ(::fcntl(restored.fd(4), F_GETFL) & (O_ASYNC | O_NONBLOCK), O_ASYNC | O_NONBLOCK);
  EXPECT_EQ(::fcntl(restored.fd(5), F_GETFL) & (O_ASYNC | O_NONBLOCK), 0);
}

TEST(Finish, PidfdsAndTheirWatchers) {
  Captured captured;
  {
    Child child([] {
      const pid_t grandchild = ::fork();
      if (grandchild == 0) ::pause();
      must(::syscall(SYS_pidfd_open, grandchild, O_NONBLOCK) == 3 && ::dup2(3, 40) == 40);
      must(::epoll_create1(0) == 4);
      epoll_event event{};
      event.events = EPOLLIN, event.data.u64 = 99;
      must(::epoll_ctl(4, EPOLL_CTL_ADD, 40, &event) == 0);
    });
    captured = capture(child);
  }
  Restored restored(captured);
  Holder holder(captured, *restored);
  captured.mutable_file(3).mutable_pidfd()->set_pid(static_cast<uint32_t>(holder.pid()));
  holder.finish(captured, *restored);
  for (const int fd : {3, 40}) {
    const FdInfo info = FdInfo::parse(info_of(holder.pid(), fd));
    EXPECT_EQ(info.number("Pid"), static_cast<uint64_t>(holder.pid()));
    EXPECT_EQ(info.cloexec, fd == 3);  // pidfd_open() sets it, dup2() clears it
    EXPECT_TRUE(info.flags & O_NONBLOCK);
  }
  const auto items = FdInfo::parse(info_of(holder.pid(), 4)).epoll_lines();
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].fd, 40);
  EXPECT_EQ(items[0].data, 99u);
  EXPECT_EQ(list_proc_numbers(holder.pid(), "fd"), std::vector<int>({0, 1, 2, 3, 4, 40}));
}

TEST(Finish, HostileReferences) {
  Captured captured;
  {
    Child child([] { must(::dup(0) == 3); });
    captured = capture(child);
  }
  Restored restored(captured);
  Holder holder(captured, *restored);
  pb::PosixLock& lock = *captured.capsule.mutable_processes(0)->add_posix_locks();
  lock.set_file(77);
  error_of(ErrorKind::kImage, [&] { holder.finish(captured, *restored); });
}

}  // namespace
}  // namespace icp::test

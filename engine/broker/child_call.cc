// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/broker/child_call.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/socket_pair.h"
#include "engine/base/unique_fd.h"
#include "engine/broker/message.h"

namespace icp {
namespace {

constexpr uint64_t kMost = 64 << 20;  // bytes of an answer

[[noreturn]] void be_child(int socket, const std::function<Message()>& work) {
  try {
    send_reply(socket, work());
  } catch (const Error& error) {
    try {
      send_error(socket, error);
    } catch (const Error&) {
      ::_exit(1);
    }
  } catch (const std::exception&) {
    ::_exit(1);
  }
  ::_exit(0);
}

pid_t inner_number(int process) {
  const UniqueFd file(::openat(process, "status", O_RDONLY | O_CLOEXEC));
  std::string text(1 << 16, '\0');
  const ssize_t got = file ? ::read(file.get(), text.data(), text.size()) : -1;
  if (got <= 0) throw_error(ErrorKind::kGone, "a process has ended");
  const ProcStatus status = ProcStatus::parse({text.data(), static_cast<size_t>(got)});
  if (status.ns_pid.empty()) throw_error(ErrorKind::kSystem, "the kernel does not tell numbers in PID namespaces");
  return status.ns_pid.back();
}

// While it lives, children of this process are born in another PID namespace.
class ChildrenElsewhere {
 public:
  explicit ChildrenElsewhere(int process) : own_(::open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC)) {
    const UniqueFd theirs(::openat(process, "ns/pid", O_RDONLY | O_CLOEXEC));
    struct stat here {
    }, there{};
    if (!theirs || !own_ || ::fstat(own_.get(), &here) != 0 || ::fstat(theirs.get(), &there) != 0)
      throw_error(ErrorKind::kGone, "a process has ended");
    if (here.st_ino == there.st_ino)
      throw_error(ErrorKind::kPermission, "the process is in no PID namespace of its own");
    if (::setns(theirs.get(), CLONE_NEWPID) != 0) throw_errno("cannot enter a PID namespace");
  }
  ~ChildrenElsewhere() {
    if (::setns(own_.get(), CLONE_NEWPID) != 0) ::_exit(1);  // later children would be in the wrong one
  }
  ChildrenElsewhere(const ChildrenElsewhere&) = delete;
  ChildrenElsewhere& operator=(const ChildrenElsewhere&) = delete;

 private:
  UniqueFd own_;
};

}  // namespace

void call_in_child(const std::function<void()>& work) {
  SocketPair ends(SOCK_STREAM);
  const pid_t child = ::fork();
  if (child < 0) throw_errno("cannot start a child");
  if (child == 0) {
    ends.here.reset();
    be_child(ends.there.get(), [&work] {
      work();
      return Message();
    });
  }
  ends.there.reset();
  const auto wait = [child] {
    while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
  };
  try {
    receive_reply(ends.here.get(), kMost);
  } catch (...) {
    wait();
    throw;
  }
  wait();
}

std::optional<Message> ask_in_child(const std::function<Message()>& work, int timeout_ms) {
  SocketPair ends(SOCK_STREAM);
  const pid_t child = ::fork();
  if (child < 0) throw_errno("cannot start a child");
  if (child == 0) {
    constexpr int kSocket = 3;
    char go = 0;  // it keeps its number until it is told that somebody holds it
    if ((ends.there.get() != kSocket && ::dup2(ends.there.get(), kSocket) < 0) ||
        ::syscall(SYS_close_range, kSocket + 1, ~0u, 0) != 0 || ::read(kSocket, &go, 1) != 1)
      ::_exit(1);
    be_child(kSocket, work);
  }
  const UniqueFd handle(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
  ends.there.reset();
  (void)::send(ends.here.get(), "g", 1, MSG_NOSIGNAL);
  pollfd answer{ends.here.get(), POLLIN, 0};
  int ready = 0;
  while ((ready = ::poll(&answer, 1, timeout_ms)) < 0 && errno == EINTR) {
  }
  std::optional<Message> reply;
  if (ready > 0) reply = receive_reply(ends.here.get(), kMost);
  if (ready == 0 && handle) ::syscall(SYS_pidfd_send_signal, handle.get(), SIGKILL, nullptr, 0);
  // One that the signal does not reach yet is left.
  constexpr int kTries = 100;
  for (int tries = 0; tries < kTries && ::waitpid(child, nullptr, WNOHANG) == 0; ++tries) ::usleep(1000);
  return reply;
}

void call_in_pid_namespace(int process, const std::function<void(pid_t)>& work) {
  const pid_t number = inner_number(process);
  const ChildrenElsewhere there(process);
  call_in_child([&] { work(number); });
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/broker/child_call.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
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

[[noreturn]] void be_child(int socket, const std::function<void()>& work) {
  try {
    work();
    send_reply(socket, {});
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
  constexpr uint64_t kMost = 64 << 10;  // bytes of an error
  SocketPair ends(SOCK_STREAM);
  const pid_t child = ::fork();
  if (child < 0) throw_errno("cannot start a child");
  if (child == 0) {
    ends.here.reset();
    be_child(ends.there.get(), work);
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

void call_in_pid_namespace(int process, const std::function<void(pid_t)>& work) {
  const pid_t number = inner_number(process);
  const ChildrenElsewhere there(process);
  call_in_child([&] { work(number); });
}

}  // namespace icp

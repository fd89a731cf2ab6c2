// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/outlive.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <exception>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr size_t kStackBytes = 256 << 10;

struct Job {
  const std::function<void()>& work;
  std::exception_ptr failure;
};

int run(void* argument) {
  Job& job = *static_cast<Job*>(argument);
  try {
    job.work();
  } catch (...) {
    job.failure = std::current_exception();
  }
  return 0;
}

class Stack {
 public:
  Stack() : at_(::mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0)) {
    if (at_ == MAP_FAILED) throw_errno("no memory for a stack");
  }
  ~Stack() { ::munmap(at_, kStackBytes); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  void* top() const { return static_cast<char*>(at_) + kStackBytes; }

 private:
  void* at_;
};

}  // namespace

void run_to_the_end(const std::function<void()>& work) {
  const Stack stack;
  Job job{work, nullptr};
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  // No signal at its end: only __WALL waits for it, and nobody else takes it for a child of theirs.
  const pid_t pid = ::clone(run, stack.top(), CLONE_VM | CLONE_VFORK | CLONE_FILES, &job);
  const int error = errno;
  if (pid > 0)
    while (::waitpid(pid, nullptr, __WALL) < 0 && errno == EINTR) {
    }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  if (pid < 0) throw_errno("cannot start a process");
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace icp

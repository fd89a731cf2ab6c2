// SPDX-License-Identifier: GPL-2.0-or-later
// Tests of System V IPC run in children with an IPC (and mount) namespace of their own: whatever they leave behind,
// also when they fail or crash, goes with the child.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace icp::test {

inline void need(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
}

inline void fresh_ipc_namespace() { need(::unshare(CLONE_NEWIPC) == 0, "unshare(CLONE_NEWIPC)"); }

// A child that runs `body` and exits with 0, or with 1 after a failed expectation or an exception.
inline pid_t start_child(const std::function<void()>& body) {
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    body();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "exception: " << error.what();
  }
  std::fflush(nullptr);
  ::_exit(::testing::Test::HasFailure() ? 1 : 0);
}

inline int wait_for(pid_t pid) {
  int status = -1;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

inline void run_child(const std::function<void()>& body) { EXPECT_EQ(wait_for(start_child(body)), 0); }

inline void run_in_namespace(const std::function<void()>& body) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root for namespaces";
  run_child([&] {
    fresh_ipc_namespace();
    need(::unshare(CLONE_NEWNS) == 0, "unshare(CLONE_NEWNS)");
    need(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "private mounts");
    body();
  });
}

// A process that has done `prepare` and then waits; killed and reaped in the destructor.
class Bystander {
 public:
  explicit Bystander(const std::function<void()>& prepare) {
    int ready[2];
    need(::pipe2(ready, O_CLOEXEC) == 0, "pipe");
    pid_ = start_child([&] {
      prepare();
      if (::testing::Test::HasFailure()) return;
      need(::write(ready[1], "x", 1) == 1, "write");
      for (;;) ::pause();
    });
    ::close(ready[1]);
    char byte = 0;
    const bool started = ::read(ready[0], &byte, 1) == 1;
    ::close(ready[0]);
    EXPECT_TRUE(started) << "the bystander did not get ready";
  }
  ~Bystander() { end(); }
  Bystander(const Bystander&) = delete;
  Bystander& operator=(const Bystander&) = delete;
  pid_t pid() const { return pid_; }
  void end() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    wait_for(pid_);
    pid_ = 0;
  }

 private:
  pid_t pid_ = 0;
};

inline void become(uid_t uid) {
  need(::setresgid(uid, uid, uid) == 0, "setresgid");
  need(::setresuid(uid, uid, uid) == 0, "setresuid");
}

inline int make_segment(key_t key, size_t bytes, int mode = 0600) {
  const int id = ::shmget(key, bytes, IPC_CREAT | IPC_EXCL | mode);
  need(id >= 0, "shmget");
  return id;
}

inline int make_semaphores(key_t key, const std::vector<unsigned short>& values, int mode = 0600) {
  const int id = ::semget(key, static_cast<int>(values.size()), IPC_CREAT | IPC_EXCL | mode);
  need(id >= 0, "semget");
  need(::semctl(id, 0, SETALL, const_cast<unsigned short*>(values.data())) == 0, "SETALL");
  return id;
}

inline std::vector<unsigned short> semaphore_values(int id, size_t count) {
  std::vector<unsigned short> values(count);
  need(::semctl(id, 0, GETALL, values.data()) == 0, "GETALL");
  return values;
}

inline int make_queue(key_t key, int mode = 0600) {
  const int id = ::msgget(key, IPC_CREAT | IPC_EXCL | mode);
  need(id >= 0, "msgget");
  return id;
}

struct Message {
  long type;
  char text[8192];
};

inline void send(int queue, long type, const std::string& text) {
  Message message{};
  message.type = type;
  std::memcpy(message.text, text.data(), text.size());
  need(::msgsnd(queue, &message, text.size(), IPC_NOWAIT) == 0, "msgsnd");
}

inline std::string receive(int queue, long type = 0) {
  Message message{};
  const ssize_t got = ::msgrcv(queue, &message, sizeof message.text, type, IPC_NOWAIT);
  if (got < 0) return fmt::format("error {}", errno);
  return fmt::format("{}:{}", message.type, std::string(message.text, static_cast<size_t>(got)));
}

inline int operate(int set, std::initializer_list<sembuf> operations) {
  std::vector<sembuf> copy(operations);
  return ::semop(set, copy.data(), copy.size());
}

}  // namespace icp::test

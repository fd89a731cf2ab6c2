// SPDX-License-Identifier: GPL-2.0-or-later
// Children that hold files, captured from outside while they are stopped, and images made from that.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/files/file_table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/temp_dir.h"

namespace icp::test {

// A process with /dev/null as 0, 1 and 2 and nothing else, which has run `setup` and is stopped since. What
// `setup` forks must pause(). Ended and waited for by the destructor.
class Child {
 public:
  explicit Child(const std::function<void()>& setup) {
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close_range(0, ~0u, 0);
      if (::open("/dev/null", O_RDWR) != 0 || ::dup(0) != 1 || ::dup(0) != 2) ::_exit(3);
      ::setpgid(0, 0);
      setup();
      ::raise(SIGSTOP);
      ::_exit(0);
    }
    if (pid_ < 0) throw std::runtime_error("cannot fork");
    ::setpgid(pid_, pid_);
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, WUNTRACED), pid_);
    EXPECT_TRUE(WIFSTOPPED(status)) << "the child's setup failed with status " << status;
  }
  ~Child() {
    if (pid_ <= 0) return;  // kill(-1) is everybody
    ::kill(-pid_, SIGKILL);
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    for (int i = 0; i < 2000 && ::kill(-pid_, 0) == 0; i++) ::usleep(500);  // what it forked holds files, too
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  std::vector<ProcessRef> refs() const {
    std::vector<ProcessRef> refs{{pid_, pid_, 0, "child", false}};
    for (const pid_t pid : read_children(pid_)) refs.push_back({pid, pid, 0, "grandchild", false});
    return refs;
  }

 private:
  pid_t pid_ = -1;
};

// Ends the child with a status that the constructor reports.
inline void must(bool ok) {
  if (!ok) ::_exit(100);
}

// In a child: waits until a process of its own no longer has a descriptor (what it forks is not stopped).
inline void wait_until_closed(pid_t pid, int fd) {
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
  while (::faccessat(AT_FDCWD, path.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) ::usleep(200);
}

struct Captured {
  pb::Capsule capsule;
  // The file under a descriptor number of the n-th process.
  const pb::OpenFile& file(int fd, int process = 0) const {
    for (const pb::FileDescriptor& entry : capsule.processes(process).fds()) {
      if (entry.fd() == fd) return capsule.files(static_cast<int>(entry.file()) - 1);
    }
    throw std::out_of_range("no descriptor " + std::to_string(fd));
  }
  pb::OpenFile& mutable_file(int fd) { return *capsule.mutable_files(static_cast<int>(file(fd).id()) - 1); }
};

inline Captured capture(
    const std::vector<ProcessRef>& refs, const std::vector<OuterStreamId>& outer = {},
    const ObjectResolver& objects = [](int, const std::string&) { return 1u; }) {
  Captured result;
  std::vector<StoppedProcess> processes(refs.size());
  std::vector<pb::Process*> states;
  for (size_t i = 0; i < refs.size(); i++) {
    processes[i].ref = refs[i];
    pb::Process* state = result.capsule.add_processes();
    state->set_pid(static_cast<uint32_t>(refs[i].vpid));
    state->set_ppid(i == 0 ? 1 : static_cast<uint32_t>(refs[0].vpid));
    state->set_pgid(static_cast<uint32_t>(refs[0].vpid));
    states.push_back(state);
  }
  capture_files(processes, states, outer, objects, result.capsule);
  return result;
}

inline Captured capture(const Child& child) { return capture(child.refs()); }

inline Findings check(const Child& child) {
  Findings findings;
  check_files(child.refs(), {}, findings);
  return findings;
}

inline FileRestoreOptions options() {
  static const int root = ::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
  FileRestoreOptions result;
  result.root_fd = root;
  return result;
}

// A restore that has been created.
class Restored {
 public:
  explicit Restored(const Captured& captured, FileRestoreOptions opts = options())
      : captured_(captured), restore_(captured.capsule, std::move(opts)) {
    restore_.create();
  }
  int fd(int number, int process = 0) const { return restore_.local_fd(captured_.file(number, process).id()); }
  FileRestore& operator*() { return restore_; }

 private:
  const Captured& captured_;
  FileRestore restore_;
};

inline std::string read_some(int fd, size_t most = 1 << 20) {
  std::string text(most, '\0');
  const ssize_t got = ::read(fd, text.data(), most);
  text.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return text;
}

inline bool would_block(int fd) {
  char byte;
  return ::read(fd, &byte, 1) < 0 && errno == EAGAIN;
}

inline std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Runs `action` and gives the text of the Error it throws; fails the test when the kind is another.
inline std::string error_of(ErrorKind kind, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
    return std::string(error.what()) + "; " + error.hint();
  }
  ADD_FAILURE() << "no error";
  return "";
}

}  // namespace icp::test

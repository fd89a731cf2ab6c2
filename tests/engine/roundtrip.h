// SPDX-License-Identifier: GPL-2.0-or-later
// A process there and back: the frame of the engine's tests.
//
// A test gives a function that runs in a process of its own: it makes some state, says ready(), waits for go() and then
// checks the state, returning 0 if all is as it was. Between ready() and go() the process is checkpointed, killed by
// SIGKILL and restored, once or several times. go() comes through standard input, an outer stream, which only a
// restored process gets.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <functional>
#include <string>

#include "engine/session.h"
#include "tests/engine/kernel_view.h"

namespace icp::test {

// In the process under test.
class Gate {
 public:
  Gate(int ready_fd, int go_fd, bool same_view) : ready_fd_(ready_fd), go_fd_(go_fd), same_view_(same_view) {}
  void ready();  // state is made
  void go();     // blocks until the process has been restored for good
  void ready_and_go() {
    ready();
    go();
  }

 private:
  int ready_fd_, go_fd_;
  bool same_view_;
  KernelView view_;  // as of ready()
};

using Body = std::function<int(Gate&)>;

struct RoundtripOptions {
  int generations = 1;     // checkpoint, kill, restore; each but the first from a restored process
  int versions = 1;        // versions taken before the kill, in the first generation
  unsigned pause_ms = 20;  // between ready and checkpoint, so that the process blocks in its next call
  bool expect_refused = false;
  bool as_root = false;  // as root's own process, with all of its rights: the test must be root's
  // That the kernel says the same of the processes before the last version and after the restart (kernel_view.h), and
  // tells the process itself the same in ready() and in go(). Not for bodies that change it meanwhile.
  bool same_view = true;
  std::function<void(SessionConfig&)> session = nullptr;   // changes to what the first session is made with
  std::function<void(RestoreOptions&)> restore = nullptr;  // changes to what every restore is made with
};

// Null where checkpoint and restart work; else what the calling process lacks: root, or user namespaces.
const char* lacking_rights();

// Runs the body as user 65534 (nobody) when the test is root's, else as the test's own user; returns the exit status
// (wait(2)) after the last restore. gtest failures are recorded for everything on the way.
int roundtrip(const Body& body, const RoundtripOptions& options = {});

// In the process under test: prints what failed and ends the process.
#define CHECK_OR_DIE(condition)                                                               \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      dprintf(2, "%s:%d: %s failed (errno %d: %m)\n", __FILE__, __LINE__, #condition, errno); \
      _exit(99);                                                                              \
    }                                                                                         \
  } while (false)

// A directory of its own, removed at the end.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace icp::test

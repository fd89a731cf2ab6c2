// SPDX-License-Identifier: GPL-2.0-or-later
// Versions of a step, of which tasks end while other processes run on.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/base/error.h"
#include "engine/image/image_dir.h"
#include "engine/session.h"
#include "tests/engine/roundtrip.h"

namespace icp {
namespace {

using test::TempDir;

class StepSession : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    for (pid_t& pid : {std::ref(task), std::ref(daemon)}) pid = sleeper();
    config.image_path = directory_.path() + "/image";
    config.identity = {::getuid(), ::getgid(), {}};
    config.node = "here";
    config.more_processes = [this] { return std::vector<pid_t>{daemon}; };
    config.ended_tasks = [this] { return ended; };
  }
  void TearDown() override {
    for (const pid_t pid : {task, daemon})
      if (pid > 0) ::kill(pid, SIGKILL), ::waitpid(pid, nullptr, 0);
  }
  static pid_t sleeper() {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int fd = 0; fd < 1024; ++fd) ::close(fd);
    for (;;) ::pause();
  }
  void end_task() {
    ::kill(task, SIGKILL);
    ::waitpid(task, nullptr, 0);
    task = 0;
  }

  SessionConfig config;
  pid_t task = 0, daemon = 0;
  std::map<int, int> ended;

 private:
  TempDir directory_;
};

// Such a version would be the last one, and nothing could be restarted of it.
TEST_F(StepSession, WhatTheTasksHaveLeftBehindIsNoStep) {
  Session session(config, {{task, 0}});
  EXPECT_EQ(session.checkpoint().version, 1u);
  EXPECT_TRUE(session.alive());
  end_task();
  ended = {{0, SIGKILL}};
  EXPECT_FALSE(session.alive());
  try {
    session.checkpoint();
    ADD_FAILURE() << "a version of no task";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kGone);
  }
  EXPECT_EQ(ImageDir::open(config.image_path, config.identity, config.node).latest(), 1u);
  EXPECT_EQ(::kill(daemon, 0), 0) << "it runs on";
}

TEST_F(StepSession, ATaskThatEndedBelongsToAVersionOfTheOthers) {
  Session session(config, {{task, 0}, {daemon, 1}});
  end_task();
  EXPECT_THROW(session.checkpoint(), Error) << "nobody has said how it ended";
  ended = {{0, 0}};
  EXPECT_EQ(session.checkpoint().version, 1u);
}

}  // namespace
}  // namespace icp

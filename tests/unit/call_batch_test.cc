// SPDX-License-Identifier: GPL-2.0-or-later
// System calls in one go, in a process that must not notice.
#include "engine/trace/call_batch.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <functional>

#include "engine/base/error.h"
#include "engine/process/signals.h"
#include "engine/process/stopped_tree.h"

namespace icp {
namespace {

constexpr int kGood = 7;
constexpr size_t kSmallStack = 2048, kNeighbour = 62 << 10;
constexpr char kPattern = 0x5a;

// Shared with the child.
struct Shared {
  std::atomic<int> ready, go;
  alignas(4096) char memory[kNeighbour + kSmallStack];  // a small stack above other data
};

class CallBatchTest : public ::testing::Test {
 public:
  CallBatchTest()
      : shared_(*new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
                    Shared{}) {}
  ~CallBatchTest() override {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
    ::munmap(&shared_, sizeof shared_);
  }

  // `body` is to set ready, and to end with kGood once go is set.
  void start(const std::function<int()>& body) {
    child_ = ::fork();
    if (child_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::_exit(body());
    }
    while (shared_.ready == 0) ::usleep(100);
    ::usleep(2000);  // into its next call
  }
  StoppedProcess stop() {
    InterruptedCalls calls;
    return stop_process(find_processes({child_}).at(0), calls);
  }
  int end() {
    shared_.go = 1;
    int status = 0;
    ::waitpid(std::exchange(child_, 0), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  // Sleeps until told to go on; a call that fails or does not last ends it otherwise.
  int sleep_and_go() {
    shared_.ready = 1;
    while (shared_.go == 0) {
      const timespec time{0, 20'000'000};
      if (::nanosleep(&time, nullptr) != 0) return 1;
    }
    return kGood;
  }

  // What the batches of these tests ask: the answers belong to the child alone.
  struct Answers {
    int64_t pid = 0, bad = 0;
    itimerval timer{};
    char name[16] = "";
  };
  static void ask(CallBatch& batch, Answers& answers) {
    struct Name {
      char text[16];
    };
    batch.call("getpid", SYS_getpid, {}, [&](int64_t result) { answers.pid = result; });
    batch.ask<itimerval>("getitimer", SYS_getitimer, {ITIMER_REAL, CallBatch::kAnswer},
                         [&](const itimerval& timer) { answers.timer = timer; });
    batch.call(nullptr, SYS_close, {12345}, [&](int64_t result) { answers.bad = result; });
    batch.ask<Name>("prctl(PR_GET_NAME)", SYS_prctl, {PR_GET_NAME, CallBatch::kAnswer},
                    [&](const Name& name) { std::memcpy(answers.name, name.text, sizeof name.text); });
  }
  bool start_batch(CallBatch& batch, StoppedProcess& process, int signal) {
    const std::vector<std::byte> xstate = process.threads[0].xstate();
    const ThreadStart& start = process.starts[0];
    return batch.start(process.threads[0], process.ref.pid, process.remote->batch_stub(),
                       {start.image, start.signal_mask, xstate}, process.ref.vpid, signal, borrowed_);
  }
  void expect_right(const Answers& answers) const {
    EXPECT_EQ(answers.pid, child_);
    EXPECT_EQ(answers.bad, -EBADF);
    EXPECT_GT(answers.timer.it_value.tv_sec, 900);
    EXPECT_STREQ(answers.name, "call-batch");
  }
  static void set_up_child() {
    ::prctl(PR_SET_NAME, "call-batch");
    const itimerval timer{{0, 0}, {1000, 0}};
    ::setitimer(ITIMER_REAL, &timer, nullptr);
  }

  BorrowedRanges borrowed_;
  Shared& shared_;
  pid_t child_ = 0;
};

TEST_F(CallBatchTest, AnswersComeFromTheProcess) {
  start([this] {
    set_up_child();
    return sleep_and_go();
  });
  StoppedProcess process = stop();
  if (process.remote->batch_stub().value == 0) GTEST_SKIP() << "no room in the vdso";
  Answers answers;
  CallBatch batch;
  ask(batch, answers);
  ASSERT_TRUE(start_batch(batch, process, find_quiet_signal(process.status, 0)));
  batch.finish();
  batch.deliver(child_);
  EXPECT_EQ(batch.tid(), child_);
  expect_right(answers);
  resume_process(process);
  EXPECT_EQ(end(), kGood);
}

TEST_F(CallBatchTest, AFailureIsNamed) {
  start([this] { return sleep_and_go(); });
  StoppedProcess process = stop();
  CallBatch batch;
  batch.call("close of nothing", SYS_close, {12345}, [](int64_t) { FAIL(); });
  if (start_batch(batch, process, SIGWINCH)) {
    batch.finish();
  } else {
    batch.run_singly(*process.remote);
  }
  try {
    batch.deliver(child_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), EBADF);
    EXPECT_NE(std::string(error.what()).find("close of nothing"), std::string::npos);
  }
  resume_process(process);
  EXPECT_EQ(end(), kGood);
}

TEST_F(CallBatchTest, WhatLiesBelowASmallStackStays) {
  start([this] {
    set_up_child();
    std::fill_n(shared_.memory, kNeighbour, kPattern);
    static ucontext_t main_context, context;
    static CallBatchTest* self = this;
    static int result = 0;
    ::getcontext(&context);
    context.uc_stack.ss_sp = shared_.memory + kNeighbour;
    context.uc_stack.ss_size = kSmallStack;
    context.uc_link = &main_context;
    ::makecontext(
        &context, [] { result = self->sleep_and_go(); }, 0);
    ::swapcontext(&main_context, &context);
    return result;
  });
  const auto untouched = [this] { return std::count(shared_.memory, shared_.memory + kNeighbour, kPattern); };
  StoppedProcess process = stop();
  const auto all = untouched();  // the child's own calls may have gone below as well
  Answers answers;
  CallBatch batch;
  ask(batch, answers);
  if (start_batch(batch, process, SIGWINCH)) {
    batch.finish();
  }
  settle_thread(process, 0);
  batch = {};
  EXPECT_EQ(untouched(), all) << "after a batch";
  process.remote->syscall(SYS_getpid);
  EXPECT_NE(untouched(), all) << "the test needs a smaller stack";
  end_calls(process);
  EXPECT_EQ(untouched(), all) << "after a single call";
  process.remote->syscall(SYS_getpid);
  resume_process(process);
  EXPECT_EQ(end(), kGood);
}

TEST_F(CallBatchTest, AProcessThatCatchesEverySignalIsAskedCallByCall) {
  start([this] {
    set_up_child();
    for (const int signal : {SIGWINCH, SIGURG, SIGCHLD}) ::signal(signal, [](int) { ::_exit(3); });
    for (int signal = 1; signal <= 64; ++signal) {
      struct sigaction action {};
      if (::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) ::signal(signal, SIG_DFL);
    }
    return sleep_and_go();
  });
  StoppedProcess process = stop();
  EXPECT_EQ(find_quiet_signal(process.status, 0), 0);
  Answers answers;
  CallBatch batch;
  ask(batch, answers);
  batch.run_singly(*process.remote);
  batch.deliver(child_);
  EXPECT_EQ(batch.tid(), child_);
  expect_right(answers);
  resume_process(process);
  EXPECT_EQ(end(), kGood);
}

// The same signal from somebody else, in the middle of a batch, is the process's and reaches it.
TEST_F(CallBatchTest, AnothersSignalIsNotLost) {
  start([this] {
    sigset_t set;
    ::sigemptyset(&set);
    ::sigaddset(&set, SIGWINCH);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    if (sleep_and_go() != kGood) return 1;
    const timespec time{5, 0};
    siginfo_t info;
    if (::sigtimedwait(&set, &info, &time) != SIGWINCH) return 2;
    const timespec none{};
    return ::sigtimedwait(&set, &info, &none) < 0 ? kGood : 3;  // ours does not reach it
  });
  StoppedProcess process = stop();
  ASSERT_EQ(::kill(child_, SIGWINCH), 0);
  EXPECT_NE(find_quiet_signal(ProcStatus::read(child_), 1ull << (SIGWINCH - 1)), SIGWINCH);
  Answers answers;
  CallBatch batch;
  ask(batch, answers);
  if (!start_batch(batch, process, SIGWINCH)) GTEST_SKIP() << "no room in the vdso";
  batch.finish();
  batch.deliver(child_);
  EXPECT_EQ(answers.pid, child_);
  resume_process(process);
  EXPECT_EQ(end(), kGood);
}

// Whoever traces it dies as soon as the batch has begun.
TEST_F(CallBatchTest, WithoutItsTracerItComesToItsEnd) {
  start([this] {
    set_up_child();
    return sleep_and_go();
  });
  for (int round = 0; round < 50; ++round) {
    const pid_t agent = ::fork();
    if (agent == 0) {
      StoppedProcess process = stop();
      Answers answers;
      CallBatch batch;
      for (int i = 0; i < 20; ++i) ask(batch, answers);
      const bool begun = start_batch(batch, process, SIGWINCH);
      ::usleep(static_cast<useconds_t>(round * 4));
      ::_exit(begun ? 0 : 1);  // no destructors
    }
    int status = 0;
    ASSERT_EQ(::waitpid(agent, &status, 0), agent);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 1) GTEST_SKIP() << "no room in the vdso";
    ASSERT_TRUE(WIFEXITED(status)) << status;
    ASSERT_EQ(::waitpid(child_, &status, WNOHANG), 0) << "it has ended in round " << round << ": " << status;
  }
  EXPECT_EQ(end(), kGood);
}

}  // namespace
}  // namespace icp

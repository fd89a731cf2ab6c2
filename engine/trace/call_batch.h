// SPDX-License-Identifier: GPL-2.0-or-later
// Many system calls in a stopped thread, made in one go.
#pragma once

#include <sys/user.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "engine/trace/borrowed_stack.h"
#include "engine/trace/remote_process.h"
#include "engine/trace/return_frame.h"

namespace icp {

// Calls that only look (getitimer, prctl(PR_GET_...) ...), and what to do with their answers. They are collected first,
// then made together, in one run of the thread instead of two stops each; then deliver() hands the answers out. Batches
// of many threads run side by side: start() all, then finish() all.
//
// A batch runs from a table by a stub that needs no tracer (return_frame.h, kBatchStub): should the agent die, it comes
// to its end and the thread goes on where it was stopped. While the agent lives, the batch ends with a signal that the
// thread sends to itself, which stops it for its tracer. The signal is one that means nothing to the process (see
// start()): sent without a tracer, the kernel drops it.
//
// The destructor puts back what lay on the stack. The thread must have been given its own registers by then: with those
// of the batch it would find nothing there should the agent die.
class CallBatch {
 public:
  // Among a call's arguments: the address of its answer, or kAnswer + N that of its byte N.
  static constexpr uint64_t kAnswer = 0x8000'1c90'0000'a45e;  // no address of user space

  using Arguments = std::initializer_list<uint64_t>;

  // A call whose result is all there is to know. `what`, a literal, names it should it fail: deliver() throws then;
  // with a null one `then` gets -errno, -ENOSYS for a call that a seccomp filter would end the thread for.
  void call(const char* what, long number, Arguments arguments, std::function<void(int64_t)> then);
  // A call that fills in a T at kAnswer, zero before.
  template <typename T>
  void ask(const char* what, long number, Arguments arguments, std::function<void(const T&)> then) {
    add({what, number, arguments, sizeof(T), [then = std::move(then)](int64_t, std::span<const std::byte> answer) {
           T value;
           std::memcpy(&value, answer.data(), sizeof value);
           then(value);
         }});
  }

  // How the thread was stopped: where it goes if the agent dies.
  struct WayBack {
    const user_regs_struct& regs;  // for the image
    uint64_t signal_mask;
    std::span<const std::byte> xstate;
  };
  // Lets a thread of process `pid` make the calls, by the process's batch stub. `tgid`: its process's number for
  // itself. `signal`: one that the process neither catches nor has pending, and that is ignored otherwise. False, with
  // nothing changed, when it cannot be done so: the process has no stub or no writable stack there, or another thread's
  // batch that has not been destroyed yet lies there (`borrowed`, of the process).
  bool start(Tracee& thread, pid_t pid, RemoteAddr stub, const WayBack& back, pid_t tgid, int signal,
             BorrowedRanges& borrowed);
  // Waits for the end, until `end`. The stop is one where the thread's own registers and mask can be set. Throws kGone
  // if the thread has ended.
  void finish(std::chrono::steady_clock::time_point end = std::chrono::steady_clock::now() + Tracee::kLongestStop);
  // Instead of start() and finish(): call by call, in scratch memory of its own.
  void run_singly(RemoteProcess& process);
  // The thread's number for itself; after the run.
  pid_t tid() const { return tid_; }

  // Hands out the answers, in the order of the calls. Throws the first failure.
  void deliver(pid_t pid) const;

 private:
  struct Call {
    const char* what;
    long number;
    std::array<uint64_t, 6> arguments{};
    size_t bytes;       // of the answer
    size_t offset = 0;  // of the answer, in answers_
    std::function<void(int64_t, std::span<const std::byte>)> then;
    int64_t result = 0;
    bool skipped = false;  // a seccomp filter would end the thread, and nothing depends on the answer
    Call(const char* what, long number, Arguments arguments, size_t bytes,
         std::function<void(int64_t, std::span<const std::byte>)> then);
  };
  void add(Call call);
  void look_at_filters(const Tracee& thread);
  std::vector<CallEntry> make_table(RemoteAddr table, RemoteAddr answers, pid_t tgid, int signal) const;
  int await_stop(std::chrono::steady_clock::duration longest);
  bool at_end() const;

  std::vector<Call> calls_;
  std::vector<std::byte> answers_;
  pid_t tid_ = 0;

  // Of a run.
  Tracee* thread_ = nullptr;
  pid_t pid_ = 0;
  RemoteAddr stub_;
  std::shared_ptr<BorrowedStack> stack_;
  RemoteAddr table_;
  pid_t tgid_ = 0;
  int signal_ = 0;
};

}  // namespace icp

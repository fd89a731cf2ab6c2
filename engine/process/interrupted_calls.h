// SPDX-License-Identifier: GPL-2.0-or-later
// System calls that a stop interrupts: made again as if nothing had been, with the time they have left.
#pragma once

#include <sys/types.h>
#include <sys/user.h>
#include <time.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace icp {

// Time-outs that we put into a stopped process: in the unused end of its vdso, below the stubs for remote calls, where
// nothing of the program lies. Each says what the program had given in its stead. That is room for some forty threads
// of a process; the others' are below their stack pointers, beyond the red zone, where any signal would write, too:
// the call reads its time-out once, as the first thing when the thread goes on.
class TimeoutPlaces {
 public:
  explicit TimeoutPlaces(pid_t pid) : pid_(pid) {}

  pid_t pid() const { return pid_; }
  // The stack pointer of the thread that the next calls are about.
  void set_stack(uint64_t pointer) { stack_ = pointer; }
  // Reads a time-out. False when it cannot be read or is none.
  bool read(uint64_t at, timespec& time) const;
  // The program's own address when `at` is one of ours, else `at`.
  uint64_t given_at(uint64_t at);
  // Writes one that stands for the program's own at `given`, to the first place that `is_used` is not true for. Its
  // address, or 0 when there is no room.
  uint64_t put(const timespec& time, uint64_t given, const std::function<bool(uint64_t)>& is_used);
  // The same, to `place`, which is one of ours.
  bool put_again(const timespec& time, uint64_t place);

 private:
  struct Place;
  uint64_t end();  // of the places; 0: there is no vdso
  uint64_t stack_place() const;
  uint64_t put_in_vdso(const Place& place, const std::function<bool(uint64_t)>& is_used);
  uint64_t put_on_stack(const Place& place) const;
  bool write(const Place& place, uint64_t at) const;

  pid_t pid_;
  uint64_t stack_ = 0;
  bool vdso_full_ = false;
  std::optional<uint64_t> end_;  // looked for when it is needed
};

// Lets a restored process's thread, which is about to make its interrupted call again, wait for what was left: `regs`
// get the address of that instead of the program's own time-out. The numbers are an image's; what makes no sense does
// nothing. Call it for one thread after the other, with the same places for those of a process.
void put_time_left(TimeoutPlaces& places, uint64_t left_ns, user_regs_struct& regs);

// Lets a thread of the running process make the call of `image` again, with what is left of its time-out.
void make_call_again(TimeoutPlaces& places, const std::optional<uint64_t>& left_ns, const user_regs_struct& image,
                     user_regs_struct& live);

// System calls found interrupted at the stops of a session, by thread. Two things are put right:
// - restart_syscall(2) hides which call it goes on with, and only the first stop sees that;
// - a call that is made again with the time-out it was given would never time out if stops come faster than that: it
//   gets what is left. The first stop counts as the beginning of the call.
class InterruptedCalls {
 public:
  // Registers to go on with and to save, from those found at a stop. The result, for the image: what is left, in
  // nanoseconds, of a time-out that the call has in memory (put_time_left).
  std::optional<uint64_t> normalise(pid_t tid, TimeoutPlaces& places, user_regs_struct& live, user_regs_struct& image);

  // A call at the same place of the program with the same stack is the same one, unless its time-out says otherwise.
  struct Call {
    uint64_t number = 0, rip = 0, rsp = 0;
    bool operator==(const Call&) const = default;
  };
  // What restart_syscall(2) hides in a thread, if another one's stop has seen it.
  void know(pid_t tid, const Call& call) { restarted_.try_emplace(tid, call); }
  const Call* hidden_call(pid_t tid) const {
    const auto found = restarted_.find(tid);
    return found == restarted_.end() ? nullptr : &found->second;
  }

 private:
  struct Wait {
    Call call;
    pid_t pid = 0;
    uint64_t timeout = 0;     // as it stands in the call now: the time, its address, or the socket that has it
    int64_t deadline_ns = 0;  // CLOCK_MONOTONIC
  };
  Wait& wait_of(pid_t tid, pid_t pid, const Call& call, uint64_t timeout, int64_t time_ns);
  void shorten_milliseconds(pid_t tid, pid_t pid, user_regs_struct& live);
  std::optional<uint64_t> left_in_memory(pid_t tid, TimeoutPlaces& places, const Call& call, unsigned long long& image);
  void shorten_timespec(pid_t tid, TimeoutPlaces& places, uint64_t left_ns, uint64_t given, unsigned long long& live);
  static std::optional<uint64_t> before_call(TimeoutPlaces& places, const user_regs_struct& live,
                                             user_regs_struct& image);
  void end_socket_wait(pid_t tid, pid_t pid, user_regs_struct& live);
  std::optional<uint64_t> go_on_after_restore(pid_t tid, TimeoutPlaces& places, const user_regs_struct& live,
                                              user_regs_struct& image);

  std::map<pid_t, Call> restarted_;
  std::map<pid_t, Wait> waits_;
  std::set<std::pair<pid_t, uint64_t>> put_;  // places in use or used once by us: others are somebody's we have not met
};

}  // namespace icp

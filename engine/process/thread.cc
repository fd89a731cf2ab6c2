// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/thread.h"

#include <linux/prctl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/process/controls.h"
#include "engine/process/interrupted_calls.h"
#include "engine/process/memory_settings.h"
#include "engine/process/rseq.h"
#include "engine/process/scheduling.h"
#include "engine/process/signals.h"
#include "engine/trace/xstate_layout.h"

namespace icp {
namespace {

struct ThreadName {
  char text[16];  // TASK_COMM_LEN
};

void capture_robust_list(pid_t tid, pb::Thread& state) {
  uint64_t head = 0;
  size_t length = 0;
  if (::syscall(SYS_get_robust_list, tid, &head, &length) != 0) return;
  state.set_robust_list(head);
  state.set_robust_list_len(length);
}

void restore_altstack(RemoteProcess& remote, const pb::Thread& state) {
  if ((state.altstack_flags() & SS_DISABLE) != 0 || state.altstack_size() == 0) return;
  remote.reset_scratch();
  stack_t stack{};
  stack.ss_sp = reinterpret_cast<void*>(state.altstack_sp());
  stack.ss_size = state.altstack_size();
  // SS_ONSTACK is a reading of the stack pointer, not a setting.
  stack.ss_flags = static_cast<int>(state.altstack_flags() & ~static_cast<uint32_t>(SS_ONSTACK));
  remote.call("sigaltstack", SYS_sigaltstack, {remote.stage_value(stack).value, 0});
}

}  // namespace

void capture_thread(const StoppedProcess& process, size_t index, CallBatch& calls, pb::Process& process_state,
                    pb::Thread& state) {
  const Tracee& thread = process.threads[index];
  const ThreadStart& start = process.starts[index];
  const user_regs_struct& regs = start.partial ? start.partial->regs : start.image;
  state.set_gpr(&regs, sizeof regs);
  if (start.partial) state.set_call_done(start.partial->done);
  if (start.time_left_ns) state.set_time_left_ns(*start.time_left_ns);
  const std::vector<std::byte> xstate = thread.xstate();
  state.set_xstate(xstate.data(), xstate.size());
  state.set_signal_mask(start.signal_mask);
  for (const siginfo_t& info : thread.pending_signals(false))
    if (!note_stop(info, process_state)) state.add_pending(&info, sizeof info);
  state.set_rseq(start.rseq);
  state.set_rseq_len(start.rseq_len);
  state.set_rseq_signature(start.rseq_signature);
  capture_robust_list(thread.tid(), state);
  capture_scheduling(thread.tid(), state);
  calls.ask<ThreadName>(
      "prctl(PR_GET_NAME)", SYS_prctl, {PR_GET_NAME, CallBatch::kAnswer},
      [&state](const ThreadName& name) { state.set_comm(name.text, ::strnlen(name.text, sizeof name.text)); });
  // Needs CONFIG_CHECKPOINT_RESTORE, which every distribution's kernel has.
  calls.ask<uint64_t>("prctl(PR_GET_TID_ADDRESS)", SYS_prctl, {PR_GET_TID_ADDRESS, CallBatch::kAnswer},
                      [&state](uint64_t address) { state.set_clear_child_tid(address); });
  calls.ask<stack_t>("sigaltstack", SYS_sigaltstack, {0, CallBatch::kAnswer}, [&state](const stack_t& stack) {
    state.set_altstack_sp(reinterpret_cast<uint64_t>(stack.ss_sp));
    state.set_altstack_size(stack.ss_size);
    state.set_altstack_flags(static_cast<uint32_t>(stack.ss_flags));
  });
  capture_thread_controls(calls, state);
  capture_numa_policy(calls, state);
  // 0 is left alone at a restore: a kernel that does not tell, or a real-time thread.
  calls.call(nullptr, SYS_prctl, {PR_GET_TIMERSLACK, 0, 0, 0, 0},
             [&state](int64_t slack) { state.set_timer_slack_ns(static_cast<uint64_t>(std::max<int64_t>(slack, 0))); });
}

void restore_thread(RemoteProcess& remote, const pb::Thread& state) {
  remote.reset_scratch();
  remote.call("prctl(PR_SET_NAME)", SYS_prctl, {PR_SET_NAME, remote.stage_string(state.comm().substr(0, 15)).value});
  remote.call("set_tid_address", SYS_set_tid_address, {state.clear_child_tid()});
  if (state.robust_list() != 0)
    remote.call("set_robust_list", SYS_set_robust_list, {state.robust_list(), state.robust_list_len()});
  restore_altstack(remote, state);
  restore_numa_policy(remote, state);
  restore_rseq(remote, state);
}

void restore_registers(Tracee& thread, TimeoutPlaces& places, const pb::Thread& state) {
  user_regs_struct regs;
  if (state.gpr().size() != sizeof regs)
    throw_error(ErrorKind::kImage, "thread {} has {} bytes of registers instead of {}", state.tid(), state.gpr().size(),
                sizeof regs);
  std::memcpy(&regs, state.gpr().data(), sizeof regs);
  if (state.has_call_done()) restore_partial_call(thread.tid(), state.call_done(), regs);
  if (state.has_time_left_ns()) put_time_left(places, state.time_left_ns(), regs);
  std::vector<std::byte> xstate = thread.xstate();  // as large as this processor's
  const std::string& saved = state.xstate();
  if (saved.size() < kXstateMinimum || xstate.size() < kXstateMinimum)
    throw_error(ErrorKind::kImage, "thread {} has an extended state of {} bytes", state.tid(), saved.size());
  // Components beyond this processor's area would be cut off: only a whole state may be loaded.
  const size_t common = std::min(saved.size(), xstate.size());
  std::fill(xstate.begin(), xstate.end(), std::byte{0});
  std::memcpy(xstate.data(), saved.data(), common);
  try {
    thread.set_xstate(xstate);
    thread.set_regs(regs);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kGone) throw;
    throw_error(ErrorKind::kImage, "the processor does not take the registers of thread {}: {}", state.tid(),
                error.what());
  }
  thread.set_signal_mask(state.signal_mask());
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/controls.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#include <fstream>
#include <string>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

// linux/prctl.h; older headers lack some of them.
constexpr uint32_t kGetTsc = 25, kSetTsc = 26, kGetSecurebits = 27;
constexpr uint32_t kSetMachineCheck = 33, kGetMachineCheck = 34, kMachineCheckSet = 1, kMachineCheckDefault = 2;
constexpr uint32_t kGetSpeculation = 52, kSetSpeculation = 53, kSpeculationKinds = 3;
constexpr uint64_t kSpeculationOff = 4 | 8 | 16;  // PR_SPEC_DISABLE, _FORCE_DISABLE, _DISABLE_NOEXEC
constexpr uint32_t kSetIoFlusher = 57, kGetIoFlusher = 58, kSetMdwe = 65, kGetMdwe = 66, kSetMerge = 67, kGetMerge = 68;
constexpr uint64_t kTscOn = 1;

template <typename State>
void add(State& state, uint32_t option, uint32_t which, uint64_t value) {
  pb::Control& control = *state.add_controls();
  control.set_option(option);
  control.set_which(which);
  control.set_value(value);
}

// Options that a kernel does not know fail; what it does not know is not set.
template <typename State>
void ask_result(CallBatch& calls, State& state, uint32_t option, uint64_t usual) {
  calls.call(nullptr, SYS_prctl, {option, 0, 0, 0, 0}, [&state, option, usual](int64_t value) {
    if (value >= 0 && static_cast<uint64_t>(value) != usual) add(state, option, 0, static_cast<uint64_t>(value));
  });
}

void set(RemoteProcess& remote, const char* what, uint32_t option, uint64_t first, uint64_t second = 0) {
  remote.call(what, SYS_prctl, {option, first, second, 0, 0});
}

}  // namespace

void capture_thread_controls(CallBatch& calls, pb::Thread& state) {
  calls.ask<int>(nullptr, SYS_prctl, {kGetTsc, CallBatch::kAnswer}, [&state](int value) {
    if (value != 0 && static_cast<uint64_t>(value) != kTscOn) add(state, kGetTsc, 0, static_cast<uint64_t>(value));
  });
  ask_result(calls, state, kGetSecurebits, 0);
  ask_result(calls, state, kGetMachineCheck, kMachineCheckDefault);
  ask_result(calls, state, kGetIoFlusher, 0);
  for (uint32_t which = 0; which < kSpeculationKinds; ++which) {
    calls.call(nullptr, SYS_prctl, {kGetSpeculation, which, 0, 0, 0}, [&state, which](int64_t value) {
      const bool set_by_prctl = value > 0 && (value & 1) != 0 && (static_cast<uint64_t>(value) & kSpeculationOff) != 0;
      if (set_by_prctl) add(state, kGetSpeculation, which, static_cast<uint64_t>(value) & kSpeculationOff);
    });
  }
}

void capture_process_controls(pid_t pid, CallBatch& calls, pb::Process& state) {
  ask_result(calls, state, kGetMdwe, 0);
  ask_result(calls, state, kGetMerge, 0);
  state.set_core_filter(static_cast<uint32_t>(std::stoul(read_proc(pid, "coredump_filter"), nullptr, 16)));
}

void restore_core_filter(pid_t pid, const pb::Process& state) {
  if (!state.has_core_filter()) return;
  const std::string text = fmt::format("{:#x}", state.core_filter());
  if (std::stoul(read_proc(pid, "coredump_filter"), nullptr, 16) == state.core_filter()) return;
  std::ofstream file(fmt::format("/proc/{}/coredump_filter", pid));
  file << text << std::flush;
  if (!file) throw_error(ErrorKind::kSystem, "cannot set the core filter of process {} to {}", state.pid(), text);
}

void restore_thread_controls(RemoteProcess& remote, const pb::Thread& state) {
  for (const pb::Control& control : state.controls()) {
    switch (control.option()) {
      case kGetTsc:
        set(remote, "prctl(PR_SET_TSC)", kSetTsc, control.value());
        break;
      case kGetSecurebits:
        break;  // give_up_rights()
      case kGetMachineCheck:
        set(remote, "prctl(PR_MCE_KILL)", kSetMachineCheck, kMachineCheckSet, control.value());
        break;
      case kGetIoFlusher:
        remote.syscall(SYS_prctl, {kSetIoFlusher, control.value(), 0, 0, 0});  // root's, too
        break;
      case kGetSpeculation:
        // Another processor may not have that to switch off.
        remote.syscall(SYS_prctl, {kSetSpeculation, control.which(), control.value(), 0, 0});
        break;
      default:
        throw_error(ErrorKind::kImage, "thread {} has an unknown setting {}", state.tid(), control.option());
    }
  }
}

void restore_process_controls(RemoteProcess& remote, const pb::Process& state) {
  for (const pb::Control& control : state.controls()) {
    if (control.option() == kGetMdwe)
      set(remote, "prctl(PR_SET_MDWE)", kSetMdwe, control.value());
    else if (control.option() == kGetMerge)
      set(remote, "prctl(PR_SET_MEMORY_MERGE)", kSetMerge, control.value());
    else
      throw_error(ErrorKind::kImage, "process {} has an unknown setting {}", state.pid(), control.option());
  }
}

}  // namespace icp

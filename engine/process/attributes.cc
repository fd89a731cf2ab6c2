// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/attributes.h"

#include <errno.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <fstream>
#include <string>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/process/directories.h"

namespace icp {

void check_attributes(const ProcessRef& process, Findings& findings) {
  const auto refuse = [&](std::string what, std::string hint) {
    findings.push_back({process.pid, process.comm, "", std::move(what), std::move(hint)});
  };
  const ProcStatus status = ProcStatus::read(process.pid);
  check_directories(process, process.pid, findings);
  if (status.tracer != 0) refuse(fmt::format("is traced by process {}", status.tracer), "detach the debugger");
}

void capture_attributes(const StoppedProcess& process, CallBatch& calls, pb::Process& state) {
  const pid_t pid = process.ref.pid;
  capture_directories(pid, state);
  state.set_oom_score_adj(std::stoi(read_proc(pid, "oom_score_adj")));
  constexpr uint64_t kNoChange = 0xffffffff;
  calls.call("personality", SYS_personality, {kNoChange},
             [&state](int64_t result) { state.set_personality(static_cast<uint32_t>(result)); });
  calls.ask<int>("prctl(PR_GET_PDEATHSIG)", SYS_prctl, {PR_GET_PDEATHSIG, CallBatch::kAnswer},
                 [&state](int signal) { state.set_pdeath_signal(signal); });
  calls.ask<int>("prctl(PR_GET_CHILD_SUBREAPER)", SYS_prctl, {PR_GET_CHILD_SUBREAPER, CallBatch::kAnswer},
                 [&state](int subreaper) { state.set_child_subreaper(subreaper != 0); });
  // Reading a local descriptor table to nowhere fails if there is one. The result is an int of 32 bits.
  calls.call(nullptr, SYS_modify_ldt, {0, 0, sizeof(uint64_t)}, [pid, comm = process.ref.comm](int64_t result) {
    if (static_cast<int32_t>(result) == -EFAULT)
      throw_error(ErrorKind::kRefused,
                  "process {} ({}) has memory segments of its own (modify_ldt); run it without 16- or 32-bit code", pid,
                  comm);
  });
  calls.call("prctl(PR_GET_DUMPABLE)", SYS_prctl, {PR_GET_DUMPABLE},
             [&state](int64_t result) { state.set_dumpable(result == 1); });
  calls.call(nullptr, SYS_prctl, {PR_GET_THP_DISABLE, 0, 0, 0, 0}, [&state](int64_t result) {
    state.set_thp_disabled(result > 0);
    state.set_thp_except_advised(result > 1);
  });
}

void restore_attributes(RemoteProcess& remote, const pb::Process& state) {
  remote.call("personality", SYS_personality, {state.personality()});
  remote.call("umask", SYS_umask, {state.umask() & 0777});
  if (state.child_subreaper()) remote.call("prctl(PR_SET_CHILD_SUBREAPER)", SYS_prctl, {PR_SET_CHILD_SUBREAPER, 1});
  if (state.thp_disabled()) {
    const uint64_t except_advised = state.thp_except_advised() ? 1u << 1 : 0;  // Linux 6.18
    remote.call("prctl(PR_SET_THP_DISABLE)", SYS_prctl, {PR_SET_THP_DISABLE, 1, except_advised, 0, 0});
  }
  // Lowering it is for administrators: a step that may not keeps its own.
  std::ofstream(fmt::format("/proc/{}/oom_score_adj", remote.pid())) << state.oom_score_adj();
}

void restore_what_ids_clear(RemoteProcess& remote, const pb::Process& state) {
  remote.call("prctl(PR_SET_DUMPABLE)", SYS_prctl, {PR_SET_DUMPABLE, state.dumpable() ? 1u : 0u});
}

void capture_death_signal(CallBatch& calls, const pb::Process& process, pb::Thread& state) {
  calls.ask<int>(nullptr, SYS_prctl, {PR_GET_PDEATHSIG, CallBatch::kAnswer}, [&process, &state](int signal) {
    if (signal != process.pdeath_signal()) state.set_pdeath_signal(signal);
  });
}

void restore_death_signal(RemoteProcess& remote, const pb::Process& process, const pb::Thread& state) {
  const int signal = state.has_pdeath_signal() ? state.pdeath_signal() : process.pdeath_signal();
  if (signal <= 0 || signal > 64) return;
  remote.call("prctl(PR_SET_PDEATHSIG)", SYS_prctl, {PR_SET_PDEATHSIG, static_cast<uint64_t>(signal)});
}

}  // namespace icp

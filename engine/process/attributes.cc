// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/attributes.h"

#include <limits.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <fstream>
#include <string>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
void check_attributes(const ProcessRef& process, Findings& findings) {
  const auto refuse = [&](std::string what, std::string remedy) {
    findings.push_back({process.pid, process.comm, "", std::move(what), std::move(remedy)});
  };
  if (const std::string cwd = read_proc_link(process.pid, "cwd"); cwd.ends_with(" (deleted)"))
    refuse("its working directory " + cwd + " has been removed", "change to a directory that exists");
  const ProcStatus status = ProcStatus::read(process.pid);
  if (const std::string root = read_proc_link(process.pid, "root"); root.ends_with(" (deleted)"))
    refuse("its root directory " + root + " has been removed", "run it without chroot");
  else if (root != "/" && status.uid[0] != 0)  // whose user could not enter it again
    refuse("runs in a changed root directory " + root, "run it without chroot, or as root");
  if (status.seccomp != 0) refuse("has a seccomp filter", "run it without the sandbox that installs the filter");
  if (status.tracer != 0) refuse(fmt::format("is traced by process {}", status.tracer), "detach the debugger");
}

void capture_attributes(const StoppedProcess& process, CallBatch& calls, pb::Process& state) {
  const pid_t pid = process.ref.pid;
  state.set_cwd(read_proc_link(pid, "cwd"));
  state.set_root(read_proc_link(pid, "root"));
  state.set_oom_score_adj(std::stoi(read_proc(pid, "oom_score_adj")));
  constexpr uint64_t kNoChange = 0xffffffff;
  calls.call("personality", SYS_personality, {kNoChange},
             [&state](int64_t result) { state.set_personality(static_cast<uint32_t>(result)); });
  calls.ask<int>("prctl(PR_GET_PDEATHSIG)", SYS_prctl, {PR_GET_PDEATHSIG, CallBatch::kAnswer},
                 [&state](int signal) { state.set_pdeath_signal(signal); });
  calls.ask<int>("prctl(PR_GET_CHILD_SUBREAPER)", SYS_prctl, {PR_GET_CHILD_SUBREAPER, CallBatch::kAnswer},
                 [&state](int subreaper) { state.set_child_subreaper(subreaper != 0); });
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

namespace {

void enter_root(RemoteProcess& remote, const pb::Process& state, const Identity& identity) {
  if (state.root().empty() || state.root() == "/") return;
  if (identity.uid != 0)
    throw_error(ErrorKind::kRefused, "process {} ran in the root directory {}, which only root may restore",
                state.pid(), state.root());
  remote.reset_scratch();
  remote.call("chroot", SYS_chroot, {remote.stage_string(state.root().substr(0, PATH_MAX)).value});
}

}  // namespace

void restore_user_attributes(RemoteProcess& remote, const pb::Process& state, const Identity& identity) {
  if (state.cwd().empty() || state.cwd()[0] != '/' || state.cwd().size() >= PATH_MAX)
    throw_error(ErrorKind::kImage, "process {} has no absolute working directory", state.pid());
  remote.reset_scratch();
  const int64_t result = remote.syscall(SYS_chdir, {remote.stage_string(state.cwd()).value});
  if (result < 0)
    throw Error(
        ErrorKind::kSystem,
        fmt::format("cannot enter the working directory {}: {}", state.cwd(), errno_text(static_cast<int>(-result))),
        static_cast<int>(-result));
  enter_root(remote, state, identity);
  if (state.pdeath_signal() > 0 && state.pdeath_signal() <= 64)
    remote.call("prctl(PR_SET_PDEATHSIG)", SYS_prctl, {PR_SET_PDEATHSIG, static_cast<uint64_t>(state.pdeath_signal())});
  remote.call("prctl(PR_SET_DUMPABLE)", SYS_prctl, {PR_SET_DUMPABLE, state.dumpable() ? 1u : 0u});
}

}  // namespace icp

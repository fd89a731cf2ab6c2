// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/attributes.h"

#include <limits.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
void check_attributes(const ProcessRef& process, Findings& findings) {
  const auto refuse = [&](std::string what, std::string remedy) {
    findings.push_back({process.pid, process.comm, "", std::move(what), std::move(remedy)});
  };
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
  struct stat directory {};
  constexpr std::string_view kDeleted = " (deleted)";
  if (state.cwd().ends_with(kDeleted) && ::stat(fmt::format("/proc/{}/cwd", pid).c_str(), &directory) == 0 &&
      directory.st_nlink == 0) {
    state.set_cwd_removed(true);
    state.mutable_cwd()->resize(state.cwd().size() - kDeleted.size());
  }
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

int64_t path_call(RemoteProcess& remote, long call, const std::string& path, uint64_t mode = 0) {
  remote.reset_scratch();
  return remote.syscall(call, {remote.stage_string(path).value, mode});
}

// Makes what is missing of the directories that lead to `path`, and it; says which those were.
std::vector<std::string> make_directories(RemoteProcess& remote, const std::string& path) {
  std::vector<std::string> made;
  for (size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    if (path_call(remote, SYS_mkdir, path.substr(0, slash), 0700) == 0) made.push_back(path.substr(0, slash));
    if (slash == std::string::npos) return made;
  }
}

// A directory that had been removed is one again, which the process alone has. One that has been removed since is made
// again, empty.
void enter_directory(RemoteProcess& remote, const pb::Process& state) {
  const bool removed = state.cwd_removed();
  int64_t result = removed ? -ENOENT : path_call(remote, SYS_chdir, state.cwd());
  const std::string own = fmt::format(".icp-{}", state.pid());  // another directory may have the name now
  std::vector<std::string> paths{state.cwd()};
  if (removed) paths.insert(paths.end(), {state.cwd() + own, "/tmp/" + own});
  for (const std::string& path : paths) {
    if (result != -ENOENT) break;
    const std::vector<std::string> made = make_directories(remote, path);
    const bool new_one = !made.empty() && made.back() == path;
    if (new_one) result = path_call(remote, SYS_chdir, path);
    if (new_one && !removed)
      spdlog::info("the working directory {} of process {} is gone: made again", path, state.pid());
    if (removed)
      for (auto directory = made.rbegin(); directory != made.rend(); ++directory)
        path_call(remote, SYS_rmdir, *directory);
  }
  if (result < 0)
    throw Error(
        ErrorKind::kSystem,
        fmt::format("cannot enter the working directory {}: {}", state.cwd(), errno_text(static_cast<int>(-result))),
        static_cast<int>(-result));
}

}  // namespace

void restore_user_attributes(RemoteProcess& remote, const pb::Process& state, const Identity& identity) {
  if (state.cwd().empty() || state.cwd()[0] != '/' || state.cwd().size() >= PATH_MAX)
    throw_error(ErrorKind::kImage, "process {} has no absolute working directory", state.pid());
  enter_directory(remote, state);
  enter_root(remote, state, identity);
  if (state.pdeath_signal() > 0 && state.pdeath_signal() <= 64)
    remote.call("prctl(PR_SET_PDEATHSIG)", SYS_prctl, {PR_SET_PDEATHSIG, static_cast<uint64_t>(state.pdeath_signal())});
  remote.call("prctl(PR_SET_DUMPABLE)", SYS_prctl, {PR_SET_DUMPABLE, state.dumpable() ? 1u : 0u});
}

}  // namespace icp

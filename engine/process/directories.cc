// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/directories.h"

#include <fcntl.h>
#include <limits.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

std::string link_name(pid_t pid, pid_t tid, const char* name) {
  return tid == pid ? name : fmt::format("task/{}/{}", tid, name);
}

// pb::Process and pb::Directories have the same fields for it.
template <typename State>
void capture(pid_t pid, pid_t tid, State& state) {
  const std::string cwd = link_name(pid, tid, "cwd");
  state.set_cwd(read_proc_link(pid, cwd));
  struct stat directory {};
  const auto removed = [&] {
    const bool seen = ::stat(fmt::format("/proc/{}/{}", pid, cwd).c_str(), &directory) == 0;
    return state.cwd().starts_with("/proc/")  // of a process that has ended
           || (seen && directory.st_nlink == 0);
  };
  if (state.cwd().ends_with(kDeleted) && removed()) {
    state.set_cwd_removed(true);
    state.set_cwd_dev(directory.st_dev);
    state.set_cwd_ino(directory.st_ino);
    state.mutable_cwd()->resize(state.cwd().size() - kDeleted.size());
  }
  state.set_root(read_proc_link(pid, link_name(pid, tid, "root")));
}

template <typename State>
void enter_root(RemoteProcess& remote, uint32_t tid, const State& state, const Identity& identity) {
  if (state.root().empty() || state.root() == "/") return;
  if (identity.uid != 0)
    throw_error(ErrorKind::kRefused, "process {} ran in the root directory {}, which only root may restore", tid,
                state.root());
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
  const UniqueFd root = open_root_of(remote.pid());
  for (size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string directory = path.substr(0, slash);
    if (open_saved(root.get(), directory_of(directory), O_PATH | O_DIRECTORY) &&
        path_call(remote, SYS_mkdir, directory, 0700) == 0)
      made.push_back(directory);
    if (slash == std::string::npos) return made;
  }
}

// A directory that had been removed is one again, which the process alone has. One that has been removed since is made
// again, empty.
template <typename State>
void enter_directory(RemoteProcess& remote, uint32_t tid, const State& state) {
  const bool removed = state.cwd_removed();
  int64_t result = removed ? -ENOENT : path_call(remote, SYS_chdir, state.cwd());
  const std::string own = fmt::format(".icp-{}", tid);  // another directory may have the name now
  std::vector<std::string> paths{state.cwd()};
  if (removed) paths.insert(paths.end(), {state.cwd() + own, "/tmp/" + own});
  for (const std::string& path : paths) {
    if (result != -ENOENT) break;
    const std::vector<std::string> made = make_directories(remote, path);
    const bool new_one = !made.empty() && made.back() == path;
    if (new_one) result = path_call(remote, SYS_chdir, path);
    if (new_one && !removed) spdlog::info("the working directory {} of process {} is gone: made again", path, tid);
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

template <typename State>
void restore(RemoteProcess& remote, uint32_t tid, const State& state, const Identity& identity, bool dry,
             bool entered = false) {
  if (state.cwd().empty() || state.cwd()[0] != '/' || state.cwd().size() >= PATH_MAX)
    throw_error(ErrorKind::kImage, "process {} has no absolute working directory", tid);
  const bool without =
      entered || (dry && (state.cwd_removed() || path_call(remote, SYS_chdir, state.cwd()) == -ENOENT));
  if (!without) enter_directory(remote, tid, state);
  enter_root(remote, tid, state, identity);
}

}  // namespace

void check_directories(const ProcessRef& process, pid_t tid, Findings& findings) {
  const auto refuse = [&](std::string what, std::string hint) {
    findings.push_back({process.pid, process.comm, tid == process.pid ? "" : fmt::format("thread {}", tid),
                        std::move(what), std::move(hint)});
  };
  const std::string root = read_proc_link(process.pid, link_name(process.pid, tid, "root"));
  if (root.ends_with(kDeleted))
    refuse("its root directory " + root + " has been removed", "run it without chroot");
  else if (root != "/" && ProcStatus::read(process.pid).uid[0] != 0)  // whose user could not enter it again
    refuse("runs in a changed root directory " + root, "run it without chroot, or as root");
}

void capture_directories(pid_t pid, pb::Process& state) { capture(pid, pid, state); }

void capture_directories(pid_t pid, pid_t tid, const ProcStatus& status, pb::Directories& state) {
  capture(pid, tid, state);
  state.set_umask(status.umask);
}

void restore_directories(RemoteProcess& remote, const pb::Process& state, const Identity& identity, bool dry,
                         bool entered) {
  restore(remote, state.pid(), state, identity, dry, entered);
}

void restore_directories(RemoteProcess& remote, uint32_t tid, const pb::Directories& state, const Identity& identity,
                         bool dry) {
  restore(remote, tid, state, identity, dry);
  remote.call("umask", SYS_umask, {state.umask() & 0777});
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/thread_own.h"

#include <linux/kcmp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <map>

#include "engine/base/error.h"
#include "engine/process/credentials.h"
#include "engine/process/directories.h"

namespace icp {

void capture_shared_directories(const std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states) {
  std::map<pid_t, size_t> places;
  for (size_t i = 0; i < processes.size(); ++i)
    if (processes[i].remote) places.emplace(processes[i].ref.pid, i);
  for (size_t i = 0; i < processes.size(); ++i) {
    const ProcessRef& child = processes[i].ref;
    const auto parent = processes[i].remote ? places.find(child.ppid) : places.end();
    if (parent != places.end() && ::syscall(SYS_kcmp, child.pid, child.ppid, KCMP_FS, 0, 0) == 0)
      states[i]->set_fs_of(states[parent->second]->pid());
  }
}

void capture_own(const StoppedProcess& process, pb::Process& state) {
  for (const auto& [index, own] : process.own) {
    pb::Thread& thread = *state.mutable_threads(static_cast<int>(index));
    if (own.status) capture_thread_credentials(*own.status, thread);
    for (const uint32_t flag : own.namespaces) thread.add_namespaces(flag);
    if (!own.directories) continue;
    pb::Directories& directories = *thread.mutable_directories();
    if (own.maker != 0)
      directories.set_of(state.threads(static_cast<int>(own.maker)).tid());
    else
      capture_directories(process.ref.pid, process.threads[index].tid(), *own.directories, directories);
  }
}

size_t maker_of(const pb::Process& state, size_t index) {
  const uint32_t of = state.threads(static_cast<int>(index)).directories().of();
  if (of == 0) return 0;
  for (size_t maker = 1; maker < index; ++maker) {
    const pb::Thread& thread = state.threads(static_cast<int>(maker));
    if (thread.tid() == of && thread.has_directories() && thread.directories().of() == 0) return maker;
  }
  throw_error(ErrorKind::kImage, "thread {} shares the directories of thread {}, which has none of its own",
              state.threads(static_cast<int>(index)).tid(), of);
}

void part_from_maker(RemoteProcess& remote, const pb::Thread& state, const Identity& identity) {
  uint64_t flags = state.has_directories() && state.directories().of() == 0 ? CLONE_FS : 0;
  for (const uint32_t flag : state.namespaces()) {
    if (flag != CLONE_NEWNS && flag != CLONE_NEWNET)
      throw_error(ErrorKind::kImage, "thread {} has an unknown namespace {:#x}", state.tid(), flag);
    if (identity.uid != 0)
      throw_error(ErrorKind::kRefused, "thread {} was in namespaces of its own, which only root may restore",
                  state.tid());
    flags |= flag;
  }
  if (flags != 0) remote.call("unshare", SYS_unshare, {flags});
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/restore/process_restore.h"

#include <signal.h>
#include <sys/syscall.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/process_signal.h"
#include "engine/base/procfs.h"
#include "engine/memory/memory_protection.h"
#include "engine/process/amx_tiles.h"
#include "engine/process/attributes.h"
#include "engine/process/controls.h"
#include "engine/process/credentials.h"
#include "engine/process/directories.h"
#include "engine/process/limits.h"
#include "engine/process/memory_settings.h"
#include "engine/process/scheduling.h"
#include "engine/process/seccomp.h"
#include "engine/process/signals.h"
#include "engine/process/thread.h"
#include "engine/process/thread_own.h"
#include "engine/process/timers.h"

namespace icp {
namespace {

constexpr int kMostThreads = 1 << 16;

}  // namespace

ProcessRestore::ProcessRestore(const RestoreShared& shared, const pb::Process& state) : shared_(shared), state_(state) {
  if (state.threads_size() < 1 || state.threads_size() > kMostThreads || state.threads(0).tid() != state.pid())
    throw_error(ErrorKind::kImage, "process {} has {} threads, or not its own number first", state.pid(),
                state.threads_size());
  Seed& seed = shared.builder.seed(state.pid());
  // Reserved: remote calls keep a pointer to the leader.
  stopped_.threads.reserve(static_cast<size_t>(state.threads_size()));
  stopped_.threads.push_back(std::move(*seed.leader));
  stopped_.remote = std::make_unique<RemoteProcess>(seed.remote->on_thread(stopped_.threads[0]));
  stopped_.ref = {seed.pid, static_cast<pid_t>(state.pid()), ProcStat::read(seed.pid).start_time_ticks, state.comm(),
                  false};
}

void ProcessRestore::map_memory() {
  widen_descriptor_limit(remote(), state_);
  if (state_.files_of() == 0) move_socket();
  trampoline_ = shared_.memory.map_process(remote(), state_);
}

void ProcessRestore::move_socket() {
  const uint64_t carrier = static_cast<uint64_t>(shared_.builder.process_socket());
  remote().call("dup3", SYS_dup3, {carrier, static_cast<uint64_t>(shared_.socket_number), 0});
  if (remote().syscall(SYS_close_range, {0, carrier, 0}) < 0)  // before Linux 5.9
    for (uint64_t fd = 0; fd <= carrier; ++fd) remote().syscall(SYS_close, {fd});
}

void ProcessRestore::finish_memory() { shared_.memory.finish_process(state_); }

void ProcessRestore::build() {
  if (state_.files_of() == 0) install_descriptors();
  restore_signal_actions(remote(), state_);
  restore_attributes(remote(), state_);
  restore_core_filter(stopped_.ref.pid, state_);
  restore_tile_permission(remote(), state_);
  restore_membarrier(remote(), state_);
  make_threads();
  for (int i = 1; i < state_.threads_size(); ++i)
    shared_.groups.place_thread(state_, state_.threads(i), stopped_.threads[static_cast<size_t>(i)].tid());
  if (!shared_.dry) restore_login_uid(remote(), state_);
  const auto found = shared_.bindings.find(state_.pid());
  const CpuBinding* const binding = found == shared_.bindings.end() ? nullptr : &found->second;
  for (int i = 0; i < state_.threads_size(); ++i) {
    RemoteProcess in_thread = remote().on_thread(stopped_.threads[static_cast<size_t>(i)]);
    restore_thread(in_thread, state_.threads(i));
    make_room_for_tiles(in_thread, state_.threads(i));
    restore_scheduling(stopped_.threads[static_cast<size_t>(i)].tid(), state_.threads(i), binding);
  }
  restore_sem_undo(remote(), state_, shared_.sysv);
}

void ProcessRestore::install_descriptors() {
  for (const pb::FileDescriptor& fd : state_.fds()) {
    if (fd.fd() < 0 || fd.fd() >= shared_.socket_number)
      throw_error(ErrorKind::kImage, "process {} has a descriptor {}", state_.pid(), fd.fd());
    const int local = shared_.files.local_fd(fd.file());
    if (local < 0) continue;  // made in the process by finish_process(): pidfds
    remote().reset_scratch();
    remote().send_fd_to(shared_.builder.agent_socket(), shared_.socket_number, local, fd.fd(), fd.cloexec());
  }
  shared_.files.finish_process(remote(), state_);
  if (state_.fs_of() == 0 && state_.cwd_removed() && state_.cwd_ino() != 0 && !shared_.dry) enter_removed_directory();
  remote().call("close", SYS_close, {static_cast<uint64_t>(shared_.socket_number)});
}

// The one that others may have, too, open or as theirs.
void ProcessRestore::enter_removed_directory() {
  const int local = shared_.files.removed_directory(state_.cwd_dev(), state_.cwd_ino(), state_.cwd());
  const auto fd = static_cast<uint64_t>(remote().send_fd(shared_.builder.agent_socket(), shared_.socket_number, local));
  in_directory_ = remote().syscall(SYS_fchdir, {fd}) == 0;  // else it gets one of its own
  remote().call("close", SYS_close, {fd});
}

void ProcessRestore::make_threads() {
  for (int i = 1; i < state_.threads_size(); ++i) {
    const size_t maker = maker_of(state_, static_cast<size_t>(i));
    RemoteProcess by = remote().on_thread(stopped_.threads[maker]);
    stopped_.threads.push_back(std::move(*shared_.builder.make_thread(by, state_.threads(i).tid())));
    RemoteProcess in_thread = remote().on_thread(stopped_.threads.back());
    part_from_maker(in_thread, state_.threads(i), shared_.identity);
  }
}

void ProcessRestore::drop_rights() {
  restore_limits(remote(), state_);
  for (size_t i = 0; i < stopped_.threads.size(); ++i) {
    RemoteProcess in_thread = remote().on_thread(stopped_.threads[i]);
    restore_credentials(in_thread, state_, shared_.identity);
    const pb::Thread& thread = state_.threads(static_cast<int>(i));
    if (i > 0 && thread.has_directories() && thread.directories().of() == 0)
      restore_directories(in_thread, thread.tid(), thread.directories(), shared_.identity, shared_.dry);
  }
  if (state_.fs_of() == 0) restore_directories(remote(), state_, shared_.identity, shared_.dry, in_directory_);
  set_what_ids_clear();
}

void ProcessRestore::finish() {
  restore_timers(remote(), state_, [this](uint32_t tid) {
    for (int i = 0; i < state_.threads_size(); ++i)
      if (state_.threads(i).tid() == tid) return remote().on_thread(stopped_.threads[static_cast<size_t>(i)]);
    throw_error(ErrorKind::kImage, "process {} has a timer of thread {}, which it has not", state_.pid(), tid);
  });
  restore_process_signals(remote(), state_);
  for (size_t i = 0; i < stopped_.threads.size(); ++i) {
    RemoteProcess in_thread = remote().on_thread(stopped_.threads[i]);
    restore_thread_signals(in_thread, state_, state_.threads(static_cast<int>(i)));
  }
}

void ProcessRestore::take_stop_of(ProcessRestore& child) {
  take_stop_of_child(remote(), child.state_.pid(), [&child] { child.run(); });
}

void ProcessRestore::close() {
  for (size_t i = 0; i < stopped_.threads.size(); ++i) {
    const pb::Thread& thread = state_.threads(static_cast<int>(i));
    if (has_filters(thread) && Tracee::may_suspend_seccomp()) stopped_.threads[i].suspend_seccomp();
    RemoteProcess in_thread = remote().on_thread(stopped_.threads[i]);
    restore_thread_controls(in_thread, thread);
  }
  protect_mappings(remote(), state_.memory());
  restore_process_controls(remote(), state_);
  restore_future_locks(remote(), state_);
  restore_filters(true);  // who has not set no_new_privs needs root's rights for it
  give_up_rights();
  restore_filters(false);
  MemoryRestore::remove_trampoline(remote(), trampoline_);
}

// The main thread last: there is one more call in it.
void ProcessRestore::restore_filters(bool suspended) {
  const bool alike = std::all_of(stopped_.threads.begin(), stopped_.threads.end(),
                                 [&](const Tracee& thread) { return thread.seccomp_suspended() == suspended; });
  size_t shared = alike ? filters_of_all(state_) : 0;
  if (!suspended && shared > 1) shared = 0;  // the first may forbid the call that puts the second into all threads
  if (shared > 0) {
    RemoteProcess in_thread = remote().on_thread(stopped_.threads[0]);
    restore_shared_filters(in_thread, shared_.capsule, state_, shared);
  }
  for (size_t i = stopped_.threads.size(); i-- > 0;) {
    const pb::Thread& thread = state_.threads(static_cast<int>(i));
    if (!has_filters(thread) || stopped_.threads[i].seccomp_suspended() != suspended) continue;
    RemoteProcess in_thread = remote().on_thread(stopped_.threads[i]);
    icp::restore_filters(in_thread, shared_.capsule, thread, i == 0, shared);
  }
}

void ProcessRestore::give_up_rights() {
  for (size_t i = 0; i < stopped_.threads.size(); ++i) {
    RemoteProcess in_thread = remote().on_thread(stopped_.threads[i]);
    const pb::Thread& thread = state_.threads(static_cast<int>(i));
    if (shared_.of_root)
      take_saved_rights(in_thread, state_, thread);
    else
      restore_securebits(in_thread, thread);
  }
  if (shared_.of_root) set_what_ids_clear();
}

void ProcessRestore::set_what_ids_clear() {
  restore_what_ids_clear(remote(), state_);
  for (size_t i = 0; i < stopped_.threads.size(); ++i) {
    RemoteProcess in_thread = remote().on_thread(stopped_.threads[i]);
    restore_death_signal(in_thread, state_, state_.threads(static_cast<int>(i)));
  }
}

void ProcessRestore::set_registers() {
  TimeoutPlaces places(stopped_.ref.pid);
  for (size_t i = 0; i < stopped_.threads.size(); ++i) {
    stopped_.threads[i].restop();
    restore_registers(stopped_.threads[i], places, state_.threads(static_cast<int>(i)));
  }
}

void ProcessRestore::run() noexcept {
  if (!stopped_.remote) return;  // running already
  const bool was_stopped = state_.state() == pb::Process::STOPPED;
  if (was_stopped && !shared_.go_on) ::kill(stopped_.ref.pid, stop_signal_of(state_, shared_.capsule));
  // As when Slurm lets a suspended step go on; it also takes back a stop that was pending.
  if (was_stopped && shared_.go_on) ::kill(stopped_.ref.pid, SIGCONT);
  stopped_.remote.reset();
  for (Tracee& thread : stopped_.threads) {
    try {
      thread.detach();
    } catch (const Error&) {
      // Killed this very moment: init reports its end.
    }
  }
}

void ProcessRestore::tell_size() const noexcept {
  if (state_.terminal().outer()) signal_process(stopped_.ref.pid, stopped_.ref.start_time, SIGWINCH);
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/process_state.h"

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/process/attributes.h"
#include "engine/process/credentials.h"
#include "engine/process/limits.h"
#include "engine/process/signals.h"
#include "engine/process/thread.h"
#include "engine/process/timers.h"

namespace icp {
namespace {

constexpr size_t kScratchBytes = 64 << 10;
constexpr uint64_t kUserCode64 = 0x33;  // __USER_CS: 64-bit code
constexpr size_t kMostArguments = 64;   // shown by icp show; the real ones are in memory

void capture_arguments(pid_t pid, pb::Process& state) {
  const std::string text = read_proc(pid, "cmdline");
  for (size_t begin = 0; begin < text.size() && state.argv_size() < static_cast<int>(kMostArguments);) {
    const size_t end = std::min(text.find('\0', begin), text.size());
    state.add_argv(text.substr(begin, end - begin));
    begin = end + 1;
  }
}

}  // namespace

void capture_process_state(StoppedProcess& process, pb::Process& state) {
  if (process.job_stopped) state.set_state(pb::Process::STOPPED);
  for (const ThreadStart& start : process.starts) {
    if (start.live.cs != kUserCode64)
      throw_error(ErrorKind::kRefused, "process {} ({}) runs 32-bit code; use a 64-bit build of it", process.ref.pid,
                  process.ref.comm);
  }
  process.remote->map_scratch(kScratchBytes);
  capture_arguments(process.ref.pid, state);
  capture_credentials(process.ref, state);
  capture_attributes(process, state);
  capture_limits(*process.remote, state);
  capture_signals(process, state);
  capture_timers(process, state);
  for (size_t i = 0; i < process.threads.size(); ++i) {
    if (i == 0) {
      capture_thread(process, i, *process.remote, *state.add_threads());
      continue;
    }
    RemoteProcess remote = process.remote->on_thread(process.threads[i]);
    if (process.calls_protected) remote.protect_calls(process.starts[i].image, process.starts[i].signal_mask);
    capture_thread(process, i, remote, *state.add_threads());
    settle_thread(process, i);
  }
  process.remote->unmap_scratch();
}

}  // namespace icp

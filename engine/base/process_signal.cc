// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/process_signal.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"

namespace icp {

// Looked at after the descriptor is there: when the number has been given anew in between, the signal goes to nobody.
bool signal_process(pid_t pid, uint64_t start_time, int signal) noexcept {
  try {
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (!process || (start_time != 0 && ProcStat::read(pid).start_time_ticks != start_time)) return false;
    return ::syscall(SYS_pidfd_send_signal, process.get(), signal, nullptr, 0) == 0;
  } catch (const std::exception&) {
    return false;
  }
}

bool has_ended(const UniqueFd& process) noexcept {
  pollfd ended{process.get(), POLLIN, 0};
  return ::poll(&ended, 1, 0) != 0;
}

}  // namespace icp

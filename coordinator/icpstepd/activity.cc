// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/activity.h"

#include <sstream>
#include <string>
#include <utility>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

// rchar, wchar, syscr and syscw, the first four lines. Their sum grows with each call, whatever came of it.
uint64_t io_of(const std::string& io) {
  constexpr int kLines = 4;
  std::istringstream lines(io);
  std::string name;
  uint64_t sum = 0, value = 0;
  for (int i = 0; i < kLines && lines >> name >> value; i++) sum += value;
  return sum;
}

// A process that hides it does no input and output that can be seen.
std::string io_text(pid_t pid) {
  try {
    return read_proc(pid, "io");
  } catch (const Error&) {
    return {};
  }
}

}  // namespace

Activity::Used Activity::used_by(const ProcessRef& process) {
  try {
    const ProcStat stat = ProcStat::read(process.pid);
    return {stat.start_time_ticks, stat.cpu_ticks, io_of(io_text(process.pid))};
  } catch (const Error&) {
    return {};  // it has just ended
  }
}

bool Activity::look(const std::vector<ProcessRef>& processes) {
  std::map<pid_t, Used> now;
  for (const ProcessRef& process : processes)
    if (!process.zombie) now[process.pid] = used_by(process);
  const bool same = !std::exchange(first_, false) && now == last_;
  last_ = std::move(now);
  return !same;
}

}  // namespace icp

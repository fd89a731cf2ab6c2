// SPDX-License-Identifier: GPL-2.0-or-later
// The words of --checkpoint-on and checkpoint_on. The SPANK plugin uses them too, hence: nothing but the standard
// library.
#pragma once

#include <algorithm>
#include <array>
#include <csignal>
#include <string>
#include <string_view>

namespace icp {

inline constexpr std::string_view kAtTimeLimit = "timelimit";
// SIGTERM by Slurm: for a preempted job, a cancelled one, one whose time is over.
inline constexpr std::string_view kPreempt = "preempt", kCancel = "cancel";
inline constexpr std::string_view kAtDrain = "drain";    // a node of the job is drained
inline constexpr std::string_view kAtSignal = "signal";  // the job's --signal, or scancel --signal
inline constexpr std::array kCheckpointMoments{kAtTimeLimit, kAtDrain, kPreempt, kCancel, kAtSignal};
inline constexpr const char* kMomentsGrammar =
    "WHEN[,WHEN...], where WHEN is timelimit, drain, preempt, cancel or signal; or none";

// Of kAtSignal. Slurm tells nobody which signal a job has asked for (job_descriptor has it, job_info has not): any but
// those that end, stop or continue a task, and those that nobody asks for.
inline bool is_asked_for(int signal) {
  static constexpr std::array kOthers{SIGKILL, SIGTERM, SIGSTOP, SIGCONT, SIGTSTP, SIGTTIN, SIGTTOU, SIGCHLD, SIGWINCH};
  return std::find(kOthers.begin(), kOthers.end(), signal) == kOthers.end();
}

inline bool has_moment(std::string_view list, std::string_view moment) {
  while (!list.empty()) {
    const std::string_view word = list.substr(0, list.find(','));
    if (word == moment) return true;
    list.remove_prefix(std::min(word.size() + 1, list.size()));
  }
  return false;
}

// "timelimit,preempt", "none".
inline bool are_moments(std::string_view list) {
  if (list == "none") return true;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    bool known = false;
    for (const std::string_view moment : kCheckpointMoments) known = known || list.substr(begin, end - begin) == moment;
    if (!known) return false;
    begin = end + 1;
  }
  return true;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/job_run.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

#include "engine/base/error.h"
#include "engine/sysv/run_dir.h"

namespace icp::spank {

void record_restart_count(const std::string& run_dir, const std::string& node, uint32_t job, uint32_t count) {
  const std::string name = RunDir::job_file(job, "run"), fresh = name + ".new";
  if (count == 0) {  // no file means 0: the common job costs nothing
    const auto dir = RunDir::find(run_dir, node);
    if (!dir) return;
    dir->remove(RunDir::job_file(job, "steps"));
    dir->remove(name);
    return;
  }
  const RunDir dir = RunDir::make(run_dir, node);
  // The steps of an earlier run say nothing about this one's.
  dir.remove(RunDir::job_file(job, "steps"));
  const UniqueFd file = dir.open(fresh, O_WRONLY | O_CREAT | O_TRUNC);
  const std::string text = std::to_string(count) + "\n";
  if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      !dir.rename(fresh, name)) {
    throw_errno("cannot write {}/{}", dir.path(), name);
  }
}

uint32_t restart_count(const std::string& run_dir, const std::string& node, uint32_t job) {
  const auto dir = RunDir::find(run_dir, node);
  const UniqueFd file = dir ? dir->open(RunDir::job_file(job, "run"), O_RDONLY) : UniqueFd();
  char text[16] = "";
  if (!file || ::read(file.get(), text, sizeof text - 1) <= 0) return 0;
  return static_cast<uint32_t>(std::strtoul(text, nullptr, 10));
}

void note_numbered_step(const std::string& run_dir, const std::string& node, uint32_t job) {
  RunDir::make(run_dir, node).open(RunDir::job_file(job, "steps"), O_WRONLY | O_CREAT);
}

}  // namespace icp::spank

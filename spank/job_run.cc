// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/job_run.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "engine/base/unique_fd.h"

namespace icp::spank {
namespace {

// With the same rights as JobLedger makes them.
UniqueFd create(const std::string& run_dir, const std::string& node, const std::string& path) {
  ::mkdir(run_dir.c_str(), 0700);
  ::mkdir((run_dir + "/" + node).c_str(), 0700);
  return UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
}

}  // namespace

std::string run_file(const std::string& run_dir, const std::string& node, uint32_t job, const char* name) {
  return run_dir + "/" + node + "/job_" + std::to_string(job) + "." + name;
}

void record_restart_count(const std::string& run_dir, const std::string& node, uint32_t job, uint32_t count) {
  const std::string path = run_file(run_dir, node, job, "run"), fresh = path + ".new";
  // The steps of an earlier run say nothing about this one's.
  ::unlink(run_file(run_dir, node, job, "steps").c_str());
  if (count == 0) {
    ::unlink(path.c_str());  // no file means 0: the common job costs nothing
    return;
  }
  const UniqueFd file = create(run_dir, node, fresh);
  const std::string text = std::to_string(count) + "\n";
  if (file && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size())) {
    std::rename(fresh.c_str(), path.c_str());
  }
}

uint32_t restart_count(const std::string& run_dir, const std::string& node, uint32_t job) {
  const UniqueFd file(::open(run_file(run_dir, node, job, "run").c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  char text[16] = "";
  if (!file || ::read(file.get(), text, sizeof text - 1) <= 0) return 0;
  return static_cast<uint32_t>(std::strtoul(text, nullptr, 10));
}

void note_numbered_step(const std::string& run_dir, const std::string& node, uint32_t job) {
  create(run_dir, node, run_file(run_dir, node, job, "steps"));
}

}  // namespace icp::spank

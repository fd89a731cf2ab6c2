// SPDX-License-Identifier: GPL-2.0-or-later
// <run_dir>/<node>: where root keeps what a node knows of its jobs. Every path below run_dir is made here.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "engine/base/unique_fd.h"

namespace icp {

// What can be the name of a node: one component of a path, neither hidden nor anything a terminal obeys.
bool is_node_name(const std::string& node);

// Held open: nothing that is renamed meanwhile leads elsewhere. Thread-safe value, but for being moved.
class RunDir {
 public:
  // Makes both directories where they are missing. kUsage: not the name of a node; kPermission: one of the two could
  // be written to by others than the caller, or is no directory (a link to one is none).
  static RunDir make(const std::string& base, const std::string& node);
  // Nothing when there is none: no job has ever been here.
  static std::optional<RunDir> find(const std::string& base, const std::string& node);

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }  // for messages, and for what lies in a job's directory
  // Opens a regular file of ours, never through a link, and without waiting for the other end of a FIFO. Nothing with
  // errno set when that is not possible.
  UniqueFd open(const std::string& name, int flags) const;
  bool remove(const std::string& name) const;
  bool rename(const std::string& from, const std::string& to) const;

  // "job_7.run": what the steps of a job must know of each other.
  static std::string job_file(uint32_t job, const char* what);
  // ".../job_7.0", the ledger of a run of the job: see ledger.h. Only this user can write to what is above it.
  std::string job_directory(uint32_t job, uint32_t restart) const;

 private:
  RunDir(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  static std::optional<RunDir> at(const std::string& base, const std::string& node, bool make);

  UniqueFd fd_;
  std::string path_;
};

}  // namespace icp

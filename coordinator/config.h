// SPDX-License-Identifier: GPL-2.0-or-later
// icp.yaml: see config/icp.yaml for every key with its default, and docs/man/icp.yaml.5.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "engine/files/file_table.h"
#include "engine/tracker/page_tracker.h"

namespace icp {

enum class IpcPolicy { kPrivate, kHost, kOff };
enum class BatchPolicy { kWhenPossible, kNever };

struct Config {
  IpcPolicy ipc = IpcPolicy::kPrivate;
  BatchPolicy batch = BatchPolicy::kWhenPossible;
  std::string checkpoint_dir;  // absolute, "%u" is the user's name; empty: the working directory
  std::chrono::milliseconds min_interval{1000};
  TrackerKind tracker = TrackerKind::kAuto;
  uint64_t staging_limit = 1ull << 30;  // bytes
  GrownFile grown_files = GrownFile::kTruncate;
  std::string run_dir = "/run/slurm-icp";
  std::string log = "/var/log/slurm-icp/icpstepd.log";  // a path, "syslog" or "none"
  std::string log_level = "info";                       // debug, info, warning, error

  // Reads a file. A missing file is an empty one, unless `must_exist`. Throws Error (kUsage) that names file, line and
  // key for unknown keys, wrong types and bad values.
  static Config load(const std::string& path, bool must_exist = false);
  // The same from text; `name` stands for the file in messages.
  static Config parse(const std::string& text, const std::string& name);
};

}  // namespace icp

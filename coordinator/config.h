// SPDX-License-Identifier: GPL-2.0-or-later
// icp.yaml: see config/icp.yaml for every key with its default, and docs/man/icp.yaml.5.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/protocol/endpoint.h"
#include "engine/files/file_table.h"
#include "engine/image/compression.h"
#include "engine/tracker/page_tracker.h"

namespace icp {

enum class IpcPolicy { kPrivate, kHost, kOff };
enum class HangAction { kReport, kRequeue };
enum class BatchPolicy { kWhenPossible, kNever };

struct Config {
  IpcPolicy ipc = IpcPolicy::kPrivate;
  BatchPolicy batch = BatchPolicy::kWhenPossible;
  std::string checkpoint_dir;  // absolute, "%u" is the user's name; empty: the working directory
  std::chrono::milliseconds min_interval{1000};
  std::string checkpoint_on;      // moments of steps that have an agent and name none; see checkpoint_moments.h
  uint32_t requeue_max = 100;     // of one job, when its time limit comes
  uint32_t restart_attempts = 1;  // runs of a requeued job in a row that cannot restart, before it is held; 0: none is
  bool exclude_failed_nodes = false;  // from such a job's next run
  std::chrono::milliseconds requeue_margin{30'000};
  std::chrono::milliseconds hang_after{0};  // without processor time, input and output; 0: nobody looks
  HangAction hang_action = HangAction::kReport;
  TrackerKind tracker = TrackerKind::kAuto;
  uint64_t staging_limit = 1ull << 30;  // bytes
  uint32_t keep = 0;                    // newest versions that stay, 0: all
  bool dedup = false;
  Compression compression = Compression::kNone;
  CheckpointFiles checkpoint_files = CheckpointFiles::kNone;
  ChangedFiles changed_files = ChangedFiles::kRestore;
  ExternalTcp external_tcp = ExternalTcp::kRefuse;
  std::string run_dir = "/run/slurm-icp";
  std::string log = "/var/log/slurm-icp/icpstepd.log";  // a path, "syslog" or "none"
  std::string log_level = "info";                       // debug, info, warning, error

  std::vector<net::Endpoint> coordinators;  // empty: none
  std::string coordinator_user = "slurm";
  std::string munge_socket;  // empty: MUNGE's default
  bool on_demand = false;

  // icpctld's own.
  net::Endpoint listen{"", 6830};  // an empty host: all addresses
  std::string state_dir = "/var/lib/slurm-icp";
  std::string coordinator_log = "stderr";  // a path, "syslog", "stderr" or "none"
  std::chrono::milliseconds prepare_timeout{600'000}, stop_timeout{10'000}, write_timeout{3'600'000};
  uint32_t max_writers = 16;  // steps; 0: no limit
  uint32_t jitter = 10;       // percent of the interval, 0 to 50
  std::string site_script;    // an absolute path, or empty
  std::optional<net::Endpoint> metrics;
  std::string rest;  // an absolute path, or empty
  std::optional<net::Endpoint> rest_listen;

  // Reads a file. A missing file is an empty one, unless `must_exist`. Throws Error (kUsage) that names file, line and
  // key for unknown keys, wrong types and bad values.
  static Config load(const std::string& path, bool must_exist = false);
  // The same from text; `name` stands for the file in messages.
  static Config parse(const std::string& text, const std::string& name);
};

}  // namespace icp

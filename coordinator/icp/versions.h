// SPDX-License-Identifier: GPL-2.0-or-later
// Versions of one tree, taken by run, watch, checkpoint and restart.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>

#include "coordinator/icp/report.h"
#include "engine/session.h"

namespace icp {

// Where versions go and how they are made, as the command line has it.
struct VersionOptions {
  std::string dir;
  std::string node;  // empty: this host's name
  std::string tracker = "auto", compression = "none";
  std::string external_tcp = "refuse";
  bool dedup = false, no_precopy = false;
  std::vector<std::string> checkpoint_files;
  uint32_t keep = 0;  // newest versions that stay, 0: all

  CLI::Option* add_dir(CLI::App& app, const char* help);  // --dir
  void add_to(CLI::App& app);                             // --node, --tracker, --external-tcp
  void add_chain(CLI::App& app);                          // --keep, --dedup, --compression, --no-precopy
};

// This host's name, up to the first dot.
std::string host_name();

// Everything a session needs but the outer streams. Creates the image directory, so that what is wrong with it is
// said before a program starts or stops.
SessionConfig session_config(const VersionOptions& options, const Identity& identity, const std::string& command);

// "auto" or what parse_tracker() knows; kUsage otherwise.
TrackerKind tracker_from(const std::string& name);

// Takes versions and says how it went. A session that cannot be opened is tried again with each version: a program
// goes on whatever happens here. Used by the thread that made it.
class Versions {
 public:
  using Open = std::function<Session(SessionConfig)>;
  // Opens the session: System V objects that the tree makes from now on are known to be its own.
  Versions(SessionConfig config, Open open, Reporter& reporter, uint32_t keep = 0);

  // One version of the tree; empty if there is none, which has been reported, unless the tree is gone.
  std::optional<CheckpointResult> take(bool kill = false) noexcept;
  // Why the last take() gave nothing.
  const std::optional<Error>& failure() const { return failure_; }

 private:
  // Carries out `step`; false if it failed, which has been noted and reported.
  bool attempt(const std::function<void()>& step) noexcept;
  void open();
  void keep_newest() noexcept;

  SessionConfig config_;
  Open open_;
  Reporter& reporter_;
  uint32_t keep_;
  std::optional<Session> session_;
  std::optional<Error> failure_;
};

// Opens a session over the one root `pid`.
Versions::Open open_root(pid_t pid);

}  // namespace icp

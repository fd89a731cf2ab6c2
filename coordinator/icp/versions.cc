// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/versions.h"

#include <sys/utsname.h>

#include <utility>

#include "coordinator/icp/cli.h"
#include "coordinator/icp/users.h"

namespace icp {

CLI::Option* VersionOptions::add_dir(CLI::App& app, const char* help) {
  return app.add_option("--dir", dir, help)->required()->type_name("DIR");
}

void VersionOptions::add_to(CLI::App& app) {
  app.add_option("--node", node, "Name of this node in the image (default: the host's name)")->type_name("NAME");
  app.add_option("--tracker", tracker,
                 "How written pages are found: auto, kernel-module, userfaultfd, soft-dirty, everything")
      ->type_name("KIND");
  app.add_option("--external-tcp", external_tcp, "TCP connections that lead out of the tree: refuse, reset")
      ->check(CLI::IsMember({"refuse", "reset"}))
      ->type_name("WHAT");
}

void VersionOptions::add_chain(CLI::App& app) {
  app.add_option("--keep", keep, "Keep only the newest N versions")->check(check_positive)->type_name("N");
  app.add_flag("--dedup", dedup, "Do not store pages that were rewritten with what they held");
  app.add_option("--checkpoint-files", checkpoint_files,
                 "Content of files open for writing, in the version: none but small ones (none), all (open)")
      ->check(CLI::IsMember({"none", "open"}))
      ->type_name("WHAT");
  app.add_option("--compression", compression, "Of page data: none, lz4, zstd")->type_name("KIND");
  app.add_flag("--no-precopy", no_precopy, "Copy no pages ahead of the stop: a longer stop, and each page once");
}

std::string host_name() {
  utsname names{};
  if (uname(&names) != 0) throw_errno("cannot read the host's name");
  const std::string name = names.nodename;
  return name.substr(0, name.find('.'));
}

TrackerKind tracker_from(const std::string& name) { return name == "auto" ? TrackerKind::kAuto : parse_tracker(name); }

SessionConfig session_config(const VersionOptions& options, const Identity& identity, const std::string& command) {
  SessionConfig config;
  config.tracker = tracker_from(options.tracker);
  config.network.external = options.external_tcp == "reset" ? ExternalTcp::kReset : ExternalTcp::kRefuse;
  config.compression = parse_compression(options.compression);
  config.dedup = options.dedup;
  if (options.checkpoint_files == "open") config.checkpoint_files = CheckpointFiles::kOpen;
  config.precopy = !options.no_precopy;
  config.image_path = options.dir;
  config.identity = identity;
  config.node = options.node.empty() ? host_name() : options.node;
  config.job.set_uid(identity.uid);
  config.job.set_gid(identity.gid);
  config.job.set_node(config.node);
  config.job.set_command(command);
  ImageDir::create(config.image_path, config.identity, config.node);
  mark_roots_image(config.image_path, config.identity);
  return config;
}

Versions::Versions(SessionConfig config, Open open, Reporter& reporter, uint32_t keep)
    : config_(std::move(config)), open_(std::move(open)), reporter_(reporter), keep_(keep) {
  attempt([this] { this->open(); });
}

void Versions::open() {
  if (!session_) session_.emplace(open_(config_));
  session_->claim();
}

bool Versions::attempt(const std::function<void()>& step) noexcept {
  failure_.reset();
  try {
    step();
    return true;
  } catch (const Error& error) {
    failure_ = error;
    // The end of the program in the middle of a version is no failure of either.
    if (error.kind() != ErrorKind::kGone || (session_ && session_->alive())) reporter_.version_failed(sentence(error));
  } catch (const std::exception& error) {
    failure_ = Error(ErrorKind::kSystem, error.what());
    reporter_.version_failed(error.what());
  }
  return false;
}

// What cannot go now (somebody reads a version) goes after a later one.
void Versions::keep_newest() noexcept {
  if (keep_ == 0) return;
  try {
    ImageDir::open(config_.image_path, config_.identity, config_.node).prune(keep_);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kBusy) print_error(fmt::format("old versions stay: {}", sentence(error)));
  }
}

std::optional<CheckpointResult> Versions::take(bool kill) noexcept {
  std::optional<CheckpointResult> result;
  attempt([&] {
    open();
    result = session_->checkpoint(kill);
    reporter_.version_taken(*result);
    keep_newest();
  });
  return result;
}

Versions::Open open_root(pid_t pid) {
  return [pid](SessionConfig config) {
    config.outer = outer_streams_of(pid, 0);
    return Session(std::move(config), {{pid, 0}});
  };
}

}  // namespace icp

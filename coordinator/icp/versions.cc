// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/versions.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include <memory>
#include <utility>

#include "coordinator/icp/answer.h"
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
  app.add_option("--external-tcp", external_tcp, "TCP connections that lead out of the tree: refuse, reset, keep")
      ->check(CLI::IsMember({"refuse", "reset", "keep"}))
      ->type_name("WHAT");
}

void VersionOptions::add_chain(CLI::App& app) {
  app.add_option("--keep", keep, "Keep only the newest N versions")->check(check_positive)->type_name("N");
  app.add_flag("--dedup", dedup, "Do not store pages that were rewritten with what they held");
  app.add_option("--checkpoint-files", checkpoint_files,
                 "Content of files, in the version: small ones open for writing (none), all open for writing (open), "
                 "a whole directory (dir:PATH); may be repeated")
      ->check([](const std::string& text) {
        return text == "none" || text == "open" || (text.starts_with("dir:") && text.size() > 4)
                   ? std::string()
                   : fmt::format("\"{}\" is none of none, open and dir:PATH", text);
      })
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

namespace {

std::string directory_to_keep(const std::string& given) {
  const std::unique_ptr<char, void (*)(void*)> path(::realpath(given.c_str(), nullptr), ::free);
  struct stat status {
  }, parent{};
  if (!path || ::stat(path.get(), &status) != 0) throw_errno("--checkpoint-files: cannot find {}", given);
  const std::string text(path.get());
  if (!S_ISDIR(status.st_mode)) throw_error(ErrorKind::kUsage, "--checkpoint-files: {} is not a directory", text);
  // What is newer than a version is moved beside it, at a restart.
  if (text == "/" || ::stat((text + "/..").c_str(), &parent) != 0 || parent.st_dev != status.st_dev)
    throw Error(ErrorKind::kUsage, fmt::format("--checkpoint-files: {} is a mount point", text), 0,
                "name a directory below it");
  return text;
}

}  // namespace

TrackerKind tracker_from(const std::string& name) { return name == "auto" ? TrackerKind::kAuto : parse_tracker(name); }

SessionConfig session_config(const VersionOptions& options, const Identity& identity, const std::string& command) {
  SessionConfig config;
  config.tracker = tracker_from(options.tracker);
  if (options.external_tcp == "reset") config.network.external = ExternalTcp::kReset;
  if (options.external_tcp == "keep") config.network.external = ExternalTcp::kKeep;
  config.compression = parse_compression(options.compression);
  config.dedup = options.dedup;
  for (const std::string& what : options.checkpoint_files) {
    if (what == "open") config.checkpoint_files = CheckpointFiles::kOpen;
    if (what.starts_with("dir:")) config.directories.push_back(directory_to_keep(what.substr(4)));
  }
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

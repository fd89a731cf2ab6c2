// SPDX-License-Identifier: GPL-2.0-or-later
// icp list, show and verify: on an image, whoever's processes it holds. No root needed for one's own images.
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "coordinator/icp/answer.h"
#include "coordinator/icp/cli.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/image_json.h"
#include "coordinator/icp/image_text.h"
#include "coordinator/icp/open_image.h"
#include "coordinator/icp/report.h"
#include "coordinator/icp/users.h"
#include "engine/base/own_network.h"
#include "engine/image/image_dir.h"
#include "engine/session.h"

namespace icp {

namespace {

struct ImageOptions {
  std::string dir, node;
  uint32_t version = 0;  // 0: the latest, or all
  bool json = false;

  void add_to(CLI::App& app) {
    app.add_option("DIR", dir, "Directory of the versions")->required()->type_name("");
    app.add_option("--node", node, "The node whose capsule is meant, if there are several")->type_name("NAME");
  }
  void add_version(CLI::App& app, const char* help) {
    app.add_option("--version", version, help)->check(check_positive)->type_name("N");
  }
};

int list(const ImageOptions& options) {
  std::vector<VersionInfo> versions = open_image(options.dir, reader_of(options.dir), options.node).versions();
  if (options.version != 0) {
    std::erase_if(versions, [&](const VersionInfo& info) { return info.version != options.version; });
    if (versions.empty()) throw_error(ErrorKind::kGone, "there is no version {} in {}", options.version, options.dir);
  }
  if (options.json) {
    nlohmann::json all = nlohmann::json::array();
    for (const VersionInfo& info : versions) all.push_back(version_json(info));
    print_json({{"directory", options.dir}, {"versions", std::move(all)}});
  } else {
    fmt::print("{}", version_table(versions));
  }
  const bool damaged =
      std::any_of(versions.begin(), versions.end(), [](const auto& info) { return !info.error.empty(); });
  return damaged ? kExitDamaged : kExitOk;
}

int show(const ImageOptions& options, bool detailed) {
  const ImageDir image = open_image(options.dir, reader_of(options.dir), options.node);
  const std::optional<uint32_t> version = options.version != 0 ? options.version : image.latest();
  if (!version) throw_error(ErrorKind::kGone, "there is no version of node {} in {}", image.node(), options.dir);
  const VersionReader reader = image.open_version(*version);
  const pb::Capsule capsule = reader.read_state();
  if (options.json) {
    print_json(image_json(reader.manifest(), capsule));
  } else {
    fmt::print("{}", image_text(reader.manifest(), capsule, detailed));
  }
  return kExitOk;
}

// Prints a line while it works, if there is somebody to see it.
std::vector<std::string> problems_of(const ImageDir& image, uint32_t version) {
  const bool terminal = isatty(STDERR_FILENO) == 1;
  if (terminal) fmt::print(stderr, "version {}: reading ...\r", version);
  std::vector<std::string> problems;
  try {
    problems = image.verify(version);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kImage) throw;
    problems.push_back(sentence(error));
  }
  if (terminal) fmt::print(stderr, "\x1b[K");
  return problems;
}

struct RehearsalOptions {
  bool wanted = false;
  std::string user;
};

// From now on this process has the rights of the user whose processes are to be put together, and ports of its own.
Identity prepare_rehearsal(ImageOptions& image, const RehearsalOptions& options) {
  Identity identity = options.user.empty() ? reader_of(image.dir) : identity_to_work_as(options.user);
  if (options.user.empty()) image.dir = check_roots_image(image.dir, identity);
  enter_own_network();
  work_as(identity);
  return identity;
}

std::vector<std::string> rehearse(const ImageDir& image, const ImageOptions& options, const Identity& identity,
                                  uint32_t version) {
  RestoreOptions restore;
  restore.image_path = options.dir;
  restore.node = image.node();
  restore.version = version;
  restore.identity = identity;
  try {
    RestoredCapsule::rehearse(restore);
  } catch (const Error& error) {
    return {"cannot be restored: " + sentence(error)};
  }
  return {};
}

int verify(ImageOptions options, const RehearsalOptions& rehearsal) {
  const Identity identity = rehearsal.wanted ? prepare_rehearsal(options, rehearsal) : reader_of(options.dir);
  const ImageDir image = open_image(options.dir, identity, options.node);
  std::vector<uint32_t> numbers;
  if (options.version != 0) {
    numbers.push_back(options.version);
  } else {
    for (const VersionInfo& info : image.versions()) numbers.push_back(info.version);
  }
  if (numbers.empty()) throw_error(ErrorKind::kGone, "there is no version of node {} in {}", image.node(), options.dir);
  int code = kExitOk;
  nlohmann::json all = nlohmann::json::array();
  for (const uint32_t version : numbers) {
    const std::vector<std::string> problems = problems_of(image, version);
    if (!problems.empty() && options.version == 0 && !image.has_version(version)) continue;  // pruned meanwhile
    const bool whole = problems.empty();
    const std::vector<std::string> obstacles =
        whole && rehearsal.wanted ? rehearse(image, options, identity, version) : std::vector<std::string>();
    if (!obstacles.empty() && options.version == 0 && !image.has_version(version)) continue;
    for (const auto* list : {&problems, &obstacles})
      for (const std::string& text : *list) print_error(fmt::format("version {}: {}", version, printable(text)));
    if (!whole || !obstacles.empty()) code = kExitFailed;
    if (options.json) {
      all.push_back({{"version", version}, {"whole", whole}, {"problems", whole ? obstacles : problems}});
      continue;
    }
    const char* const restores = !rehearsal.wanted || !whole ? ""
                                 : obstacles.empty()         ? ", restores"
                                                             : ", does not restore";
    fmt::print("version {}: {}{}\n", version, whole ? "whole" : "damaged", restores);
  }
  if (options.json) print_json({{"directory", options.dir}, {"versions", std::move(all)}});
  return code;
}

}  // namespace

void add_image_commands(Cli& cli) {
  auto options = std::make_shared<ImageOptions>();
  CLI::App* app = cli.app.add_subcommand("list", "List the versions in a directory");
  options->add_to(*app);
  options->add_version(*app, "Only this version");
  app->add_flag("--json", options->json, "Print JSON");
  app->callback([&cli, options] { cli.chosen = [options] { return list(*options); }; });

  options = std::make_shared<ImageOptions>();
  app = cli.app.add_subcommand("show", "Show what a version holds; every mapping with -v");
  options->add_to(*app);
  options->add_version(*app, "The version (default: the latest)");
  app->add_flag("--json", options->json, "Print JSON");
  app->callback([&cli, options] { cli.chosen = [&cli, options] { return show(*options, cli.verbosity > 0); }; });

  options = std::make_shared<ImageOptions>();
  app = cli.app.add_subcommand("verify", "Read and check every byte of the versions in a directory");
  options->add_to(*app);
  options->add_version(*app, "Only this version, and what it needs of others");
  app->add_flag("--json", options->json, "Print JSON");
  auto rehearsal = std::make_shared<RehearsalOptions>();
  CLI::Option* wanted =
      app->add_flag("--restore", rehearsal->wanted,
                    "Put each together, too, beside the running job, up to the moment before anything runs");
  app->add_option("--user", rehearsal->user, "With --restore: as this user (default: the owner of DIR)")
      ->type_name("NAME")
      ->needs(wanted);
  app->footer("Exits with 0 if all is whole (and restores), 1 if something is not.");
  app->callback(
      [&cli, options, rehearsal] { cli.chosen = [options, rehearsal] { return verify(*options, *rehearsal); }; });
}

}  // namespace icp

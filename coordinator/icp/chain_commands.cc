// SPDX-License-Identifier: GPL-2.0-or-later
// icp compact and prune: on the versions of an image, while a job takes more of them or not.
#include <memory>
#include <nlohmann/json.hpp>

#include "coordinator/icp/answer.h"
#include "coordinator/icp/cli.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/open_image.h"
#include "coordinator/icp/report.h"
#include "coordinator/icp/users.h"
#include "engine/image/image_dir.h"

namespace icp {

namespace {

struct ChainOptions {
  std::string dir, node, compression = "none";
  uint32_t keep = 1;
  bool json = false;

  void add_to(CLI::App& app) {
    app.add_option("DIR", dir, "Directory of the versions")->required()->type_name("");
    app.add_option("--node", node, "The node whose capsule is meant, if there are several")->type_name("NAME");
    app.add_flag("--json", json, "Print JSON");
  }
};

void print(const ChainOptions& options, const ChainResult& result) {
  if (options.json) {
    print_json({{"version", result.version}, {"removed", result.removed}, {"bytes_freed", result.bytes_freed}});
  } else {
    if (result.version != 0) fmt::print("version {} holds all pages itself\n", result.version);
    fmt::print("{} removed, {} freed\n", counted(result.removed.size(), "version"), human_bytes(result.bytes_freed));
  }
  if (!result.left.empty()) print_error(result.left + "; icp prune removes the old versions later");
}

int compact(const ChainOptions& options) {
  const Compression compression = parse_compression(options.compression);
  const ImageDir image = open_image(options.dir, reader_of(options.dir), options.node);
  print(options, image.compact(options.keep, compression));
  return kExitOk;
}

int prune(const ChainOptions& options) {
  print(options, open_image(options.dir, reader_of(options.dir), options.node).prune(options.keep));
  return kExitOk;
}

}  // namespace

void add_chain_commands(Cli& cli) {
  auto options = std::make_shared<ChainOptions>();
  CLI::App* app = cli.app.add_subcommand("compact", "Fold the versions in a directory into one");
  options->add_to(*app);
  app->add_option("--keep", options->keep, "Keep the newest N versions, the new one counted (default: 1)")
      ->check(check_positive)
      ->type_name("N");
  app->add_option("--compression", options->compression, "Of the page data written: none, lz4, zstd")
      ->type_name("KIND");
  app->footer("The job may go on and take versions meanwhile.");
  app->callback([&cli, options] { cli.chosen = [options] { return compact(*options); }; });

  options = std::make_shared<ChainOptions>();
  app = cli.app.add_subcommand("prune", "Remove old versions from a directory");
  options->add_to(*app);
  app->add_option("--keep", options->keep, "Keep the newest N versions")
      ->required()
      ->check(check_positive)
      ->type_name("N");
  app->footer("Files that the versions left refer to stay.");
  app->callback([&cli, options] { cli.chosen = [options] { return prune(*options); }; });
}

}  // namespace icp

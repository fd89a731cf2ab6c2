// SPDX-License-Identifier: GPL-2.0-or-later
// icp diff: what changed from one version to another. Page contents are compared by the hashes in the page files; no
// page is read.
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "coordinator/icp/answer.h"
#include "coordinator/icp/cli.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/open_image.h"
#include "coordinator/icp/users.h"
#include "engine/image/image_dir.h"
#include "engine/image/page_hash.h"
#include "engine/image/page_store.h"

namespace icp {

namespace {

struct DiffOptions {
  std::string dir, node;
  uint32_t from = 0, to = 0;  // 0: the last but one, the latest
  bool json = false;
};

struct StoreDiff {
  std::string name;
  uint64_t added = 0, removed = 0, changed = 0, same = 0;  // pages
};

// What a version says, but for the contents of pages.
struct Described {
  VersionReader reader;
  pb::Capsule capsule;
  std::map<std::string, std::string> stores;  // name, and whose memory it is

  explicit Described(VersionReader opened) : reader(std::move(opened)), capsule(reader.read_state()) {
    for (const pb::Process& process : capsule.processes()) {
      if (process.memory().index().empty()) continue;
      stores[process.memory().index()] = fmt::format("process {} {}", process.pid(), printable(process.comm()));
      if (process.memory().shared_index().empty()) continue;
      const auto added = stores.try_emplace(process.memory().shared_index()).second;
      if (added) stores[process.memory().shared_index()] = fmt::format("relatives of process {}", process.pid());
    }
    for (const pb::MemoryObject& object : capsule.objects())
      stores[object.index()] = fmt::format("shared memory {}", printable(object.path()));
  }
};

using Pages = std::map<uint64_t, PageHash>;

Pages pages_of(const Described& version, const std::string& store) {
  Pages pages;
  if (!version.stores.contains(store)) return pages;
  PageStoreReader reader(version.reader, store);
  PageHashes hashes;
  reader.load_hashes(hashes);
  reader.index().for_each_run([&](uint64_t address, uint64_t count, PageLocation) {
    for (uint64_t i = 0; i < count; ++i, address += 4096)
      pages.emplace_hint(pages.end(), address, hashes.find(address));
  });
  return pages;
}

StoreDiff diff_store(const Described& from, const Described& to, const std::string& name) {
  StoreDiff diff;
  diff.name = name;
  const Pages before = pages_of(from, name), after = pages_of(to, name);
  for (const auto& [address, hash] : after) {
    const auto old = before.find(address);
    if (old == before.end()) {
      ++diff.added;
    } else if (old->second == hash) {
      ++diff.same;
    } else {
      ++diff.changed;
    }
  }
  diff.removed = before.size() - diff.changed - diff.same;
  return diff;
}

std::map<uint32_t, std::string> processes_of(const Described& version) {
  std::map<uint32_t, std::string> found;
  for (const pb::Process& process : version.capsule.processes()) found[process.pid()] = printable(process.comm());
  return found;
}

std::set<std::string> descriptors_of(const Described& version) {
  std::map<uint32_t, std::string> paths;
  for (const pb::OpenFile& file : version.capsule.files()) paths[file.id()] = printable(file.identity().path());
  std::set<std::string> found;
  for (const pb::Process& process : version.capsule.processes()) {
    for (const pb::FileDescriptor& fd : process.fds())
      found.insert(fmt::format("process {} descriptor {} {}", process.pid(), fd.fd(), paths[fd.file()]));
  }
  return found;
}

template <typename Set>
std::vector<std::string> only_in(const Set& one, const Set& other) {
  std::vector<std::string> found;
  for (const auto& item : one) {
    if constexpr (std::is_same_v<Set, std::set<std::string>>) {
      if (!other.contains(item)) found.push_back(item);
    } else {
      if (!other.contains(item.first)) found.push_back(fmt::format("process {} {}", item.first, item.second));
    }
  }
  return found;
}

void print_text(const Described& from, const Described& to, const std::vector<StoreDiff>& stores) {
  for (const std::string& text : only_in(processes_of(from), processes_of(to))) fmt::print("- {}\n", text);
  for (const std::string& text : only_in(processes_of(to), processes_of(from))) fmt::print("+ {}\n", text);
  for (const std::string& text : only_in(descriptors_of(from), descriptors_of(to))) fmt::print("- {}\n", text);
  for (const std::string& text : only_in(descriptors_of(to), descriptors_of(from))) fmt::print("+ {}\n", text);
  for (const StoreDiff& store : stores) {
    const auto whose = to.stores.contains(store.name) ? to.stores.find(store.name) : from.stores.find(store.name);
    fmt::print("{} ({}): {} changed, {} new, {} gone, {} as before\n", store.name, whose->second,
               counted(store.changed, "page"), store.added, store.removed, store.same);
  }
}

void print_diff_json(const Described& from, const Described& to, const std::vector<StoreDiff>& stores) {
  nlohmann::json all = nlohmann::json::array();
  for (const StoreDiff& store : stores)
    all.push_back({{"store", store.name},
                   {"changed", store.changed},
                   {"added", store.added},
                   {"removed", store.removed},
                   {"same", store.same}});
  print_json({{"from", from.reader.version()},
              {"to", to.reader.version()},
              {"processes_gone", only_in(processes_of(from), processes_of(to))},
              {"processes_new", only_in(processes_of(to), processes_of(from))},
              {"descriptors_gone", only_in(descriptors_of(from), descriptors_of(to))},
              {"descriptors_new", only_in(descriptors_of(to), descriptors_of(from))},
              {"stores", std::move(all)}});
}

int diff(DiffOptions options) {
  const ImageDir image = open_image(options.dir, reader_of(options.dir), options.node);
  std::vector<uint32_t> numbers;  // before options.to
  for (const VersionInfo& info : image.versions()) {
    if (options.to == 0 || info.version < options.to) numbers.push_back(info.version);
  }
  if (options.to == 0 && !numbers.empty()) {
    options.to = numbers.back();
    numbers.pop_back();
  }
  if (options.from == 0 && !numbers.empty()) options.from = numbers.back();
  if (options.from == 0 || options.to == 0)
    throw_error(ErrorKind::kUsage, "{} holds no two versions to compare", options.dir);
  const Described from(image.open_version(options.from)), to(image.open_version(options.to));
  std::set<std::string> names;
  for (const auto* side : {&from, &to})
    for (const auto& [name, whose] : side->stores) names.insert(name);
  std::vector<StoreDiff> stores;
  stores.reserve(names.size());
  for (const std::string& name : names) stores.push_back(diff_store(from, to, name));
  if (options.json) {
    print_diff_json(from, to, stores);
  } else {
    print_text(from, to, stores);
  }
  return kExitOk;
}

}  // namespace

void add_diff_command(Cli& cli) {
  auto options = std::make_shared<DiffOptions>();
  CLI::App* app = cli.app.add_subcommand("diff", "Show what changed from one version to another");
  app->add_option("DIR", options->dir, "Directory of the versions")->required()->type_name("");
  app->add_option("--from", options->from, "The older version (default: the last but one)")
      ->check(check_positive)
      ->type_name("N");
  app->add_option("--to", options->to, "The newer version (default: the latest)")
      ->check(check_positive)
      ->type_name("N");
  app->add_option("--node", options->node, "The node whose capsule is meant, if there are several")->type_name("NAME");
  app->add_flag("--json", options->json, "Print JSON");
  app->callback([&cli, options] { cli.chosen = [options] { return diff(*options); }; });
}

}  // namespace icp

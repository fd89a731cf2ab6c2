// SPDX-License-Identifier: GPL-2.0-or-later
// ImageDir::verify(): every byte that a version consists of.
#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <set>

#include "engine/base/error.h"
#include "engine/image/image_dir.h"
#include "engine/image/image_files.h"
#include "engine/image/image_layout.h"
#include "engine/image/page_store.h"

namespace icp {
namespace {

constexpr uint64_t kChunkPages = 256;
// A store with a lost disk block has a few bad pages, one with a lost file has millions.
constexpr size_t kMaxProblemsPerStore = 10;

// One damage, one sentence: a lost directory shows in every store and every run of pages. Returns how many were new.
size_t add_problem(std::vector<std::string>& problems, const Error& error) {
  if (std::find(problems.begin(), problems.end(), error.what()) != problems.end()) return 0;
  problems.emplace_back(error.what());
  return 1;
}

std::set<std::string> stores_of(const VersionReader& version, const pb::Capsule& capsule) {
  std::set<std::string> stores;
  for (const pb::Process& process : capsule.processes()) {
    if (!process.memory().index().empty()) stores.insert(process.memory().index());
  }
  for (const pb::MemoryObject& object : capsule.objects()) {
    if (!object.index().empty()) stores.insert(object.index());
  }
  for (const pb::FileEntry& file : version.manifest().files()) {
    if (auto store = store_of_index_file(file.name(), version.version())) stores.insert(*store);
  }
  return stores;
}

void verify_file(const VersionReader& version, const pb::FileEntry& file) {
  if (file.xxh3() == 0) return;  // a page file: its records carry checksums
  const std::string path = version.file_path(version.version(), file.name());
  const UniqueFd fd = version.open_file(version.version(), file.name());
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(), XXH3_freeState);
  if (!hash || XXH3_64bits_reset(hash.get()) == XXH_ERROR) throw std::bad_alloc();
  std::vector<std::byte> buffer(kChunkPages * kPageBytes);
  for (uint64_t offset = 0; offset < file.bytes();) {
    const size_t bytes = std::min<uint64_t>(buffer.size(), file.bytes() - offset);
    read_at(fd.get(), buffer.data(), bytes, offset, path);
    XXH3_64bits_update(hash.get(), buffer.data(), bytes);
    offset += bytes;
  }
  if (XXH3_64bits_digest(hash.get()) != file.xxh3()) {
    throw_error(ErrorKind::kImage, "{} is damaged: it is not the file that the manifest describes", path);
  }
}

void verify_store(const VersionReader& version, const std::string& name, std::vector<std::string>& problems) {
  PageStoreReader reader(version, name);
  std::vector<std::byte> buffer(kChunkPages * kPageBytes);
  size_t found = 0;
  const auto verify_run = [&](uint64_t, uint64_t pages, PageLocation location) {
    for (uint64_t at = 0; at < pages && found < kMaxProblemsPerStore; at += kChunkPages) {
      const uint64_t count = std::min(kChunkPages, pages - at);
      try {
        reader.read({location.version, location.record + at}, count, std::span(buffer).first(count * kPageBytes));
      } catch (const Error& error) {
        found += add_problem(problems, error);
      }
    }
  };
  reader.index().for_each_run_in_file_order(0, 1ull << 48, verify_run);
  if (found == kMaxProblemsPerStore) problems.push_back(fmt::format("more problems in {} are not shown", name));
}

}  // namespace

std::vector<std::string> ImageDir::verify(uint32_t number) const {
  std::vector<std::string> problems;
  const auto attempt = [&problems](const auto& what) {
    try {
      what();
    } catch (const Error& error) {
      add_problem(problems, error);
    }
  };
  std::optional<VersionReader> version;
  attempt([&] { version.emplace(open_version(number)); });
  if (!version) return problems;
  pb::Capsule capsule;
  attempt([&] { capsule = version->read_state(); });
  const auto has_problem = [&problems](const std::string& path) {
    return std::any_of(problems.begin(), problems.end(),
                       [&](const std::string& text) { return text.starts_with(path); });
  };
  for (const std::string& store : stores_of(*version, capsule)) {
    attempt([&] { verify_store(*version, store, problems); });
  }
  for (const pb::FileEntry& file : version->manifest().files()) {
    // One sentence for one damage: the store's own is the more precise one.
    if (!has_problem(version->file_path(number, file.name()))) attempt([&] { verify_file(*version, file); });
  }
  return problems;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// Images in temporary directories, for the tests of engine/image.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "engine/base/error.h"
#include "engine/image/image_dir.h"
#include "engine/image/page_store.h"
#include "tests/unit/temp_dir.h"

namespace icp::test {

constexpr uint64_t kPage = 4096;

inline Identity own_identity() { return {::geteuid(), ::getegid(), {}}; }

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

inline void write_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

// What a directory holds besides the lock files.
inline int entries_but_locks(const std::string& path) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path)) count += entry.path().extension() != ".lock";
  return count;
}

// A page that tells its seed; seed 0 is a page of zeros.
inline std::vector<std::byte> page_of(uint64_t seed) {
  std::vector<std::byte> page(kPage);
  if (seed == 0) return page;
  for (size_t i = 0; i < kPage; i += sizeof seed) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(page.data() + i, &seed, sizeof seed);
  }
  return page;
}

// address -> seed of the page there
using Reference = std::map<uint64_t, uint64_t>;

// Everything a store holds as of a version, page by page.
inline std::map<uint64_t, std::vector<std::byte>> read_store(const VersionReader& version, const std::string& name) {
  PageStoreReader reader(version, name);
  std::map<uint64_t, std::vector<std::byte>> result;
  reader.index().for_each_run([&](uint64_t address, uint64_t pages, PageLocation location) {
    std::vector<std::byte> bytes(pages * kPage);
    reader.read(location, pages, bytes);
    for (uint64_t i = 0; i < pages; ++i) {
      const auto* first = bytes.data() + i * kPage;
      result[address + i * kPage].assign(first, first + kPage);
    }
  });
  return result;
}

inline bool store_equals(const VersionReader& version, const std::string& name, const Reference& reference) {
  const auto pages = read_store(version, name);
  if (pages.size() != reference.size()) return false;
  for (const auto& [address, seed] : reference) {
    const auto found = pages.find(address);
    if (found == pages.end() || found->second != page_of(seed)) return false;
  }
  return true;
}

}  // namespace icp::test

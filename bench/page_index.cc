// SPDX-License-Identifier: GPL-2.0-or-later
// The page index against a std::map (the red-black tree of the first design) and a sorted vector: building it, looking
// pages up, changing 1% of them for a new version, and the bytes all of it takes on disk.
//
// Pages lie in eight areas of an address space, as heaps and mappings do. Look-ups and changes are in random order for
// all three. On disk, map and vector are arrays of (address, location), 16 bytes a page, written whole each time.
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <random>
#include <vector>

#include "engine/image/image_dir.h"
#include "engine/image/image_layout.h"
#include "engine/image/page_index_file.h"

namespace {

using icp::PageIndex;
using icp::PageLocation;

constexpr uint64_t kAreas = 8, kAreaGap = 1ull << 40;

std::vector<uint64_t> addresses(int64_t pages) {
  std::vector<uint64_t> result;
  const uint64_t each = (static_cast<uint64_t>(pages) + kAreas - 1) / kAreas;
  for (uint64_t i = 0; i < static_cast<uint64_t>(pages); ++i)
    result.push_back((1 + i / each) * kAreaGap + i % each * icp::kPageBytes);
  return result;
}

std::vector<uint64_t> shuffled(std::vector<uint64_t> list, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::shuffle(list.begin(), list.end(), random);
  return list;
}

// One shape for all three.
struct Radix {
  PageIndex index;
  void append(uint64_t address, PageLocation location) { index.set(address, location); }
  void change(uint64_t address, PageLocation location) { index.set(address, location); }
  PageLocation find(uint64_t address) const { return index.find(address); }
};

struct Tree {
  std::map<uint64_t, PageLocation> map;
  void append(uint64_t address, PageLocation location) { map.emplace_hint(map.end(), address, location); }
  void change(uint64_t address, PageLocation location) { map[address] = location; }
  PageLocation find(uint64_t address) const { return map.find(address)->second; }
};

struct Vector {
  std::vector<std::pair<uint64_t, PageLocation>> list;
  void append(uint64_t address, PageLocation location) { list.emplace_back(address, location); }
  auto at(uint64_t address) const {
    return std::lower_bound(list.begin(), list.end(), address, [](const auto& a, uint64_t b) { return a.first < b; });
  }
  void change(uint64_t address, PageLocation location) {
    list[static_cast<size_t>(at(address) - list.begin())].second = location;
  }
  PageLocation find(uint64_t address) const { return at(address)->second; }
};

template <typename Kind>
void fill(Kind& kind, const std::vector<uint64_t>& pages) {
  uint64_t record = 0;
  for (const uint64_t address : pages) kind.append(address, {1, record++});
}

template <typename Kind>
void build(benchmark::State& state) {
  const auto pages = addresses(state.range(0));
  for ([[maybe_unused]] auto _ : state) {
    Kind kind;
    fill(kind, pages);
    benchmark::DoNotOptimize(kind);
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

template <typename Kind>
void look_up(benchmark::State& state) {
  const auto pages = addresses(state.range(0));
  Kind kind;
  fill(kind, pages);
  const auto order = shuffled(pages, 1);
  size_t next = 0;
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(kind.find(order[next]));
    if (++next == order.size()) next = 0;
  }
  state.SetItemsProcessed(state.iterations());
}

template <typename Kind>
void update(benchmark::State& state) {
  const auto pages = addresses(state.range(0));
  Kind kind;
  fill(kind, pages);
  auto order = shuffled(pages, 2);
  order.resize(std::max<size_t>(1, order.size() / 100));
  uint32_t version = 2;
  for ([[maybe_unused]] auto _ : state) {
    uint64_t record = 0;
    for (const uint64_t address : order) kind.change(address, {version, record++});
    ++version;
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(order.size()));
}

uint64_t commit(icp::ImageDir& image, PageIndex& index) {
  icp::VersionWriter writer = image.begin_version();
  icp::PageIndexFile::write(index, writer, "bench");
  const uint64_t bytes = writer.bytes_written();
  writer.commit({});
  return bytes;
}

// Versions that each rewrite a random 1%: bytes of one index a page, as if nothing were shared with older versions, and
// of what each version adds; and the time that writing one takes.
void on_disk(benchmark::State& state) {
  const auto pages = addresses(state.range(0));
  const auto versions = static_cast<uint32_t>(state.range(1));
  const std::string dir = fmt::format("{}/icp-bench-{}", std::filesystem::temp_directory_path().string(), getpid());
  for ([[maybe_unused]] auto _ : state) {
    PageIndex index;
    uint64_t record = 0;
    for (const uint64_t address : pages) index.set(address, {1, record++});
    icp::ImageDir image = icp::ImageDir::create(dir, {getuid(), getgid(), {}}, "n0");
    uint64_t last = commit(image, index);
    std::mt19937_64 random(3);
    std::vector<uint64_t> chosen(std::max<size_t>(1, pages.size() / 100));
    for (uint32_t version = 2; version <= versions; ++version) {
      for (uint64_t& address : chosen) address = pages[random() % pages.size()];
      std::sort(chosen.begin(), chosen.end());
      record = 0;
      for (const uint64_t address : chosen) index.set(address, {version, record++});
      last = commit(image, index);
    }
    state.counters["bytes_per_page"] = static_cast<double>(last) / static_cast<double>(pages.size());
    std::filesystem::remove_all(dir);
  }
}

void sizes(benchmark::internal::Benchmark* bench) {
  for (const int64_t pages : {10'000, 100'000, 1'000'000, 10'000'000}) bench->Arg(pages);
  bench->Unit(benchmark::kNanosecond);
}

}  // namespace

BENCHMARK_TEMPLATE(build, Radix)->Apply(sizes);
BENCHMARK_TEMPLATE(build, Tree)->Apply(sizes);
BENCHMARK_TEMPLATE(build, Vector)->Apply(sizes);
BENCHMARK_TEMPLATE(look_up, Radix)->Apply(sizes);
BENCHMARK_TEMPLATE(look_up, Tree)->Apply(sizes);
BENCHMARK_TEMPLATE(look_up, Vector)->Apply(sizes);
BENCHMARK_TEMPLATE(update, Radix)->Apply(sizes);
BENCHMARK_TEMPLATE(update, Tree)->Apply(sizes);
BENCHMARK_TEMPLATE(update, Vector)->Apply(sizes);
BENCHMARK(on_disk)
    ->Args({100'000, 1})
    ->Args({100'000, 10})
    ->Args({100'000, 100})
    ->Args({100'000, 300})
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

BENCHMARK_MAIN();

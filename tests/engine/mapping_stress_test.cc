// SPDX-License-Identifier: GPL-2.0-or-later
// A program that does nothing but change its mappings, and checks every answer, under versions each 50 ms: its calls
// behave as without us at any moment of any phase.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

constexpr size_t kPage = 4096;

// One mapping of the program's, every page with a stamp.
struct Region {
  char* at;
  size_t pages, most;  // shared memory does not grow
  uint64_t stamp;
  bool shared;

  uint64_t& page(size_t i) { return *reinterpret_cast<uint64_t*>(at + i * kPage); }
  void fill(size_t from) {
    for (size_t i = from; i < pages; ++i) page(i) = stamp + i;
  }
  void check() {
    for (size_t i = 0; i < pages; ++i) CHECK_OR_DIE(page(i) == stamp + i);
  }
};

class MappingChanges {
 public:
  void run(const std::atomic<bool>& stop) {
    while (!stop) {
      if (regions_.size() < 24) add();
      Region& region = regions_[random_() % regions_.size()];
      region.check();
      change(region, random_() % 10);
      ++count_;
    }
    for (Region& region : regions_) region.check();
  }

 private:
  void add() {
    const bool shared = random_() % 3 == 0;
    const size_t pages = 1 + random_() % 300;
    void* at = ::mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE,
                      (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
    CHECK_OR_DIE(at != MAP_FAILED);
    regions_.push_back({static_cast<char*>(at), pages, shared ? pages : 2000, random_(), shared});
    regions_.back().fill(0);
  }

  void change(Region& region, unsigned what) {
    const size_t bytes = region.pages * kPage;
    if (what < 4) return resize(region, 1 + random_() % region.most);
    if (what == 4) {  // somewhere else
      void* const room = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      CHECK_OR_DIE(room != MAP_FAILED);
      CHECK_OR_DIE(::mremap(region.at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
      region.at = static_cast<char*>(room);
    } else if (what == 5) {
      CHECK_OR_DIE(::mprotect(region.at, bytes, PROT_READ) == 0);
      region.check();
      CHECK_OR_DIE(::mprotect(region.at, bytes, PROT_READ | PROT_WRITE) == 0);
    } else if (what == 6) {
      const size_t locked = std::min<size_t>(bytes, 4 * kPage);
      CHECK_OR_DIE(::mlock(region.at, locked) == 0);
      CHECK_OR_DIE(::munlock(region.at, locked) == 0);
    } else if (what == 7) {
      CHECK_OR_DIE(::madvise(region.at, bytes, MADV_DONTNEED) == 0);
      if (!region.shared)
        for (size_t i = 0; i < region.pages; ++i) CHECK_OR_DIE(region.page(i) == 0);
      region.stamp = random_();
      region.fill(0);
    } else if (what == 8 && random_() % 8 == 0) {
      const pid_t child = ::fork();
      if (child == 0) {
        region.check();
        if (!region.shared) resize(region, 1 + random_() % region.most);
        region.check();
        _exit(0);
      }
      int status = 0;
      CHECK_OR_DIE(child > 0 && ::waitpid(child, &status, 0) == child && status == 0);
    } else if (what == 9) {
      CHECK_OR_DIE(::munmap(region.at, bytes) == 0);
      region = regions_.back();
      regions_.pop_back();
    }
  }

  void resize(Region& region, size_t pages) {
    void* const at = ::mremap(region.at, region.pages * kPage, pages * kPage, MREMAP_MAYMOVE);
    CHECK_OR_DIE(at != MAP_FAILED);
    region.at = static_cast<char*>(at);
    const size_t before = std::exchange(region.pages, pages);
    region.fill(std::min(before, pages));
    region.check();
  }

  std::vector<Region> regions_;
  std::mt19937_64 random_{20261130};
  uint64_t count_ = 0;
};

// ICP_STRESS_SECONDS=120 for as long.
TEST(MappingStress, CallsOnMappingsBehaveAsWithoutUs) {
  if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
  const char* const seconds = std::getenv("ICP_STRESS_SECONDS");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds == nullptr ? 0 : std::atoi(seconds));
  do
    EXPECT_EQ(roundtrip(
                  [](Gate& gate) {
                    std::atomic<bool> stop = false;
                    MappingChanges changes;
                    std::thread thread([&] { changes.run(stop); });
                    gate.ready();
                    gate.go();
                    stop = true;
                    thread.join();
                    return 0;
                  },
                  {.generations = 2, .versions = 25, .pause_ms = 50, .same_view = false}),
              0);
  while (std::chrono::steady_clock::now() < end && !HasFailure());
}

}  // namespace
}  // namespace icp::test

// SPDX-License-Identifier: GPL-2.0-or-later
// Memory over several versions: what is in the image is what was in memory.
#include "engine/memory/memory_capture.h"

#include <gtest/gtest.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "tests/unit/memory_test_support.h"

namespace icp::test {
namespace {

constexpr uint64_t kMiB = 1 << 20;

char* map_anonymous(size_t bytes, int flags = MAP_PRIVATE) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  return static_cast<char*>(at);
}

TEST(MemoryCapture, OnlyWhatWasWrittenIsStoredAgain) {
  char* at = map_anonymous(16 * kMiB);
  TestChild child([at](uint64_t seed) {
    for (size_t page = 0; page < (seed == 1 ? 4096 : 40); ++page) {
      at[(seed == 1 ? page : page * 97) * kPageSize] = static_cast<char>(seed);
    }
  });
  ASSERT_TRUE(child.run(1));
  CaptureRig rig(child.pid());
  rig.take();
  EXPECT_EQ(rig.difference, "");
  EXPECT_TRUE(rig.stats.full);
  EXPECT_GE(rig.stats.pages_written, 4096u);
  const uint64_t total = rig.stats.pages_total;
  ASSERT_TRUE(child.run(2));
  rig.take();
  EXPECT_EQ(rig.difference, "");
  EXPECT_FALSE(rig.stats.full);
  EXPECT_LT(rig.stats.pages_written, 200u);
  EXPECT_GE(rig.stats.pages_written, 40u);
  EXPECT_NEAR(static_cast<double>(rig.stats.pages_total), static_cast<double>(total), 50);
  ::munmap(at, 16 * kMiB);
}

// Memory of the mapping at `at` in all of these: what several share counts once.
uint64_t kib_in_all(const std::vector<pid_t>& pids, const char* at) {
  uint64_t sum = 0;
  for (const pid_t pid : pids) {
    const std::string text = read_proc(pid, "smaps");
    size_t line = 0;
    for (uint64_t start = 0, end = 0; line < text.size(); line = text.find('\n', line) + 1) {
      if (std::sscanf(text.c_str() + line, "%" SCNx64 "-%" SCNx64, &start, &end) != 2) continue;
      if (start <= reinterpret_cast<uint64_t>(at) && reinterpret_cast<uint64_t>(at) < end) break;
    }
    sum += std::stoull(text.substr(text.find("Pss:", line) + 4));
  }
  return sum;
}

std::vector<pid_t> pids_below(pid_t root) {
  std::vector<pid_t> pids;
  for (const ProcessRef& ref : find_processes({root})) pids.push_back(ref.pid);
  return pids;
}

// A pool of workers: what they share since fork() they share after a version, too.
TEST(MemoryCapture, PagesSharedByForkStaySharedInTheRunningProcesses) {
  char* at = map_anonymous(32 * kMiB);
  auto* const done = reinterpret_cast<std::atomic<int>*>(map_anonymous(kPageSize, MAP_SHARED));
  TestChild child([at, done](uint64_t step) {
    if (step == 2) return void(at[5 * kMiB] = 2);
    std::memset(at, 1, 32 * kMiB);
    for (char worker = 1; worker <= 3; ++worker) {
      if (::fork() != 0) continue;
      for (size_t page = 0; page < 64; ++page) at[page * 7 * kPageSize] = worker;  // some of its own in between
      ++*done;
      for (;;) ::pause();
    }
    while (*done < 3) ::usleep(1000);
  });
  ASSERT_TRUE(child.run(1));
  CaptureRig rig(child.pid());
  const std::vector<pid_t> pids = pids_below(child.pid());
  ASSERT_EQ(pids.size(), 4u);
  const uint64_t before = kib_in_all(pids, at);
  for (uint64_t version = 1; version <= 3; ++version) {
    rig.take();
    EXPECT_EQ(rig.difference, "");
    EXPECT_LT(kib_in_all(pids, at), before + 2048) << version;
    ASSERT_TRUE(child.run(2));
  }
  // One of them alone: its parent is a relative, too.
  CaptureRig alone(pids[1]);
  alone.take();
  EXPECT_EQ(alone.difference, "");
  EXPECT_LT(kib_in_all(pids, at), before + 2048);
  ::munmap(at, 32 * kMiB);
}

TEST(MemoryCapture, AnAbandonedVersionMakesTheNextOneFull) {
  char* at = map_anonymous(4 * kMiB);
  TestChild child([at](uint64_t seed) { std::memset(at, static_cast<int>(seed), 4 * kMiB); });
  ASSERT_TRUE(child.run(1));
  CaptureRig rig(child.pid());
  rig.take();
  ASSERT_TRUE(child.run(2));
  rig.abandon_one();
  rig.take();
  EXPECT_EQ(rig.difference, "");
  EXPECT_TRUE(rig.stats.full);
  rig.take();
  EXPECT_EQ(rig.difference, "");
  EXPECT_FALSE(rig.stats.full);
  ::munmap(at, 4 * kMiB);
}

// madvise() on a mapping that an earlier version has seen.
TEST(MemoryCapture, AdviceGivenBetweenTwoVersionsIsSeen) {
  char* at = map_anonymous(4 * kMiB);
  TestChild child([at](uint64_t step) {
    std::memset(at, static_cast<int>(step), 4 * kMiB);
    if (step == 2) ::madvise(at, 4 * kMiB, MADV_DONTDUMP);
  });
  CaptureRig rig(child.pid());
  const auto advised = [&] {
    const auto& mappings = rig.capsule.processes(0).memory().mappings();
    const auto found = std::find_if(mappings.begin(), mappings.end(), [&](const pb::Mapping& mapping) {
      return mapping.start() <= reinterpret_cast<uint64_t>(at) && reinterpret_cast<uint64_t>(at) < mapping.end();
    });
    return found != mappings.end() && found->advice_size() == 1 && found->advice(0) == MADV_DONTDUMP;
  };
  ASSERT_TRUE(child.run(1));
  rig.take();
  EXPECT_FALSE(advised());
  ASSERT_TRUE(child.run(2));
  rig.take();
  EXPECT_TRUE(advised());
  EXPECT_FALSE(rig.stats.full);
  ::munmap(at, 4 * kMiB);
}

// A page that was protected and discarded leaves a marker in a file mapping that looks like a swapped page.
TEST(MemoryCapture, DiscardedPagesOfPrivateFileMappings) {
  TempDir dir;
  write_file(dir / "file", std::string(64 * kPageSize, 'f'));
  const UniqueFd fd(::open((dir / "file").c_str(), O_RDWR));
  auto* at = static_cast<char*>(::mmap(nullptr, 64 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd.get(), 0));
  TestChild child([at](uint64_t step) {
    if (step == 1) std::memset(at, 'p', 32 * kPageSize);
    if (step == 2) ::madvise(at + 4 * kPageSize, 8 * kPageSize, MADV_DONTNEED);
    if (step == 3) std::memset(at + 6 * kPageSize, 0, kPageSize);
    if (step == 4) ::mprotect(at, 64 * kPageSize, PROT_NONE);
  });
  CaptureRig rig(child.pid());
  for (uint64_t step = 1; step <= 6; ++step) {
    ASSERT_TRUE(child.run(step));
    rig.take();
    EXPECT_EQ(rig.difference, "") << step;
  }
}

TEST(MemoryCapture, DescriptorsWriteBehindThePageTable) {
  const UniqueFd fd(::memfd_create("written-by-pwrite", 0));
  ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(4 * kMiB)), 0);
  auto* at = static_cast<char*>(::mmap(nullptr, 4 * kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
  TestChild child([&](uint64_t step) {
    if (step == 1) std::memset(at, 1, 4 * kMiB);
    if (step == 2) (void)!::pwrite(fd.get(), "hello", 5, 123456);
    if (step == 3) ::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 16384);
    if (step == 4) (void)!::ftruncate(fd.get(), 12345);
    if (step == 5) (void)!::ftruncate(fd.get(), 4 << 20);
  });
  CaptureRig rig(child.pid());
  for (uint64_t step = 1; step <= 6; ++step) {
    ASSERT_TRUE(child.run(step));
    rig.take();
    EXPECT_EQ(rig.difference, "") << step;
    if (step > 1) {
      EXPECT_LT(rig.stats.pages_written, 500u);
    }
  }
}

// Once both are registered with the tracker, the kernel makes one mapping of them: the name of neither is in map_files
// any more.
TEST(MemoryCapture, AdjacentMappingsOfADeletedFileThatBecomeOne) {
  const UniqueFd fd(::memfd_create("two-parts", 0));
  ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(2 * kMiB)), 0);
  char* at = map_anonymous(2 * kMiB);
  TestChild child([&](uint64_t step) {
    if (step > 2) return;
    const uint64_t part = (step - 1) * kMiB;
    ::mmap(at + part, kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd.get(), static_cast<off_t>(part));
    if (step == 1) std::memset(at, 1, kMiB / 2);
  });
  CaptureRig rig(child.pid());
  rig.precopy = false;
  for (uint64_t step = 1; step <= 3; ++step) {
    ASSERT_TRUE(child.run(step));
    rig.take();
    EXPECT_EQ(rig.difference, "") << step;
  }
  ::munmap(at, 2 * kMiB);
}

// Lets a second pass since the last attach, so that the segment's times can be told apart.
TEST(MemoryCapture, SysvSegmentsFromTheirMappersTrackers) {
  const int id = ::shmget(IPC_PRIVATE, 8 * kMiB, 0600);
  ASSERT_GE(id, 0);
  auto* at = static_cast<char*>(::shmat(id, nullptr, 0));
  TestChild child([&](uint64_t step) {
    if (step == 1) std::memset(at, 1, 8 * kMiB);
    if (step == 2) at[5 * kMiB] = 7;
    if (step == 3) ::madvise(at, kMiB, MADV_DONTNEED);  // drops entries, not data
    if (step == 4) at[kMiB] = 3, ::madvise(at + kMiB, kPageSize, MADV_DONTNEED);
    if (step == 5) ::madvise(at + 2 * kMiB, 16 * kPageSize, MADV_REMOVE);
    if (step == 6) {  // somebody comes, writes and goes
      auto* other = static_cast<char*>(::shmat(id, nullptr, 0));
      other[6 * kMiB] = 9;
      ::shmdt(other);
    }
    if (step == 7 && ::fork() == 0) {
      at[7 * kMiB] = 9;
      ::_exit(0);
    }
  });
  ::shmdt(at);
  CaptureRig rig(child.pid());
  rig.segments = {id};
  ASSERT_TRUE(child.run(1));
  rig.take();
  EXPECT_EQ(rig.difference, "");
  ::sleep(2);
  for (uint64_t step = 2; step <= 9; ++step) {
    ASSERT_TRUE(child.run(step));
    rig.take();
    EXPECT_EQ(rig.difference, "") << step;
    EXPECT_LT(rig.stats.pages_written, 300u) << step;
    ASSERT_EQ(rig.capsule.sysv().segments_size(), 1);
    EXPECT_NE(rig.capsule.sysv().segments(0).object(), 0u);
    if (step == 5) ::usleep(100000);
  }
  ::shmctl(id, IPC_RMID, nullptr);
}

TEST(MemoryCapture, ADetachedSegmentIsSaved) {
  const int id = ::shmget(IPC_PRIVATE, kMiB, 0600);
  auto* at = static_cast<char*>(::shmat(id, nullptr, 0));
  at[12345] = 42;
  ::shmdt(at);
  TestChild child([](uint64_t) {});
  CaptureRig rig(child.pid());
  rig.segments = {id};
  for (int i = 0; i < 2; ++i) {
    rig.take();
    ASSERT_EQ(rig.capsule.sysv().segments_size(), 1);
    const auto pages = read_store(rig.image().open_version(rig.version),
                                  fmt::format("object_{}", rig.capsule.sysv().segments(0).object()));
    ASSERT_EQ(pages.size(), 1u);
    EXPECT_EQ(pages.begin()->second[12345 - 12288], std::byte{42});
  }
  ::shmctl(id, IPC_RMID, nullptr);
}

TEST(MemoryCapture, ReservesCostNothing) {
  void* reserve = ::mmap(nullptr, 4ull << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(reserve, MAP_FAILED);
  TestChild child([](uint64_t) {});
  CaptureRig rig(child.pid());
  rig.verify = false;
  rig.take();
  rig.take();
  EXPECT_LT(rig.stop_ns, 100'000'000u);
  ::munmap(reserve, 4ull << 40);
}

TEST(MemoryCapture, ExecAndForkBetweenPrecopyAndStop) {
  char* at = map_anonymous(kMiB);
  TestChild child([at](uint64_t step) {
    std::memset(at, static_cast<int>(step), kMiB);
    if (step == 2 && ::fork() == 0) {
      at[5] = 77;
      for (;;) ::pause();
    }
    if (step == 3 && ::fork() == 0) {
      ::execl("/bin/sleep", "sleep", "100", nullptr);
      ::_exit(1);
    }
  });
  CaptureRig rig(child.pid());
  rig.take();
  rig.take([&] { child.run(2); });
  EXPECT_EQ(rig.difference, "");
  rig.take([&] { child.run(3); });
  EXPECT_EQ(rig.difference, "");
  ::usleep(50000);
  rig.take();
  EXPECT_EQ(rig.difference, "");
  EXPECT_EQ(rig.capsule.processes_size(), 3);
  ::munmap(at, kMiB);
}

// The stop's own cost. Run with --gtest_also_run_disabled_tests for numbers.
TEST(MemoryCapture, DISABLED_StopTime) {
  for (const uint64_t mib : {1024, 4096}) {
    char* at = map_anonymous(mib * kMiB);
    TestChild child([at, mib](uint64_t step) {
      const uint64_t pages = mib * kMiB / kPageSize;
      if (step == 1) {
        for (uint64_t page = 0; page < pages; ++page) at[page * kPageSize] = static_cast<char>(page | 1);
        return;
      }
      for (uint64_t i = 0, x = step; i < pages / 100; ++i) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        at[(x >> 20) % pages * kPageSize + 8] = static_cast<char>(x >> 30);
      }
    });
    ASSERT_TRUE(child.run(1));
    CaptureRig rig(child.pid());
    rig.verify = false;
    for (uint64_t step = 2; step < 12; ++step) {
      rig.precopy = step < 8;
      rig.take();
      fmt::print("{} MiB, {}: collect {:.2f} ms, {} pages written\n", mib, rig.precopy ? "pre-copy" : "no pre-copy",
                 static_cast<double>(rig.stop_ns) / 1e6, rig.stats.pages_written);
      ASSERT_TRUE(child.run(step));
    }
    ::munmap(at, mib * kMiB);
  }
}

}  // namespace
}  // namespace icp::test

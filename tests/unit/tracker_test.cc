// SPDX-License-Identifier: GPL-2.0-or-later
// Trackers against a byte-for-byte comparison of a child's memory: what changed must have been reported as written.
#include <gtest/gtest.h>
#include <sys/shm.h>

#include <algorithm>
#include <cstring>

#include "engine/base/procfs.h"
#include "engine/tracker/page_tracker.h"
#include "engine/tracker/userfaultfd_tracker.h"
#include "tests/unit/memory_test_support.h"

namespace icp::test {
namespace {

constexpr size_t kPages = 1024;
constexpr size_t kBytes = kPages * kPageSize;

struct Case {
  const char* name;
  MappingClass kind;
  std::function<char*()> map;
};

char* anonymous(int flags, size_t bytes = kBytes) {
  return static_cast<char*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0));
}

// A huge page counts whole, and from 6.7 on the kernel places a mapping of this size so that it has some.
char* small_pages() {
  char* at = anonymous(MAP_PRIVATE);
  ::madvise(at, kBytes, MADV_NOHUGEPAGE);
  return at;
}

char* huge() {
  char* at = anonymous(MAP_PRIVATE, 2 * kBytes);
  at = reinterpret_cast<char*>((reinterpret_cast<uint64_t>(at) + (2 << 20) - 1) & ~uint64_t{(2 << 20) - 1});
  ::madvise(at, kBytes, MADV_HUGEPAGE);
  return at;
}

char* segment() {
  const int id = ::shmget(IPC_PRIVATE, kBytes, 0600);
  auto* at = static_cast<char*>(::shmat(id, nullptr, 0));
  ::shmctl(id, IPC_RMID, nullptr);
  return at;
}

char* private_file() {
  const UniqueFd fd(::memfd_create("tracked", MFD_CLOEXEC));
  (void)!::ftruncate(fd.get(), kBytes);
  (void)!::pwrite(fd.get(), "file", 4, 0);
  return static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd.get(), 0));
}

const Case kCases[] = {
    {"anonymous", MappingClass::kAnonymous, small_pages},
    {"huge", MappingClass::kAnonymous, huge},
    {"shared", MappingClass::kShared, [] { return anonymous(MAP_SHARED); }},
    {"sysv", MappingClass::kShared, segment},
    {"file", MappingClass::kPrivateFile, private_file},
};

// What the child does to its memory, step by step.
void act(char* at, bool shared, uint64_t step) {
  switch (step) {
    case 0:
      std::memset(at, 1, kBytes / 2);
      break;
    case 1:
      at[5 * kPageSize] = 2;
      at[900 * kPageSize] = 2;
      break;
    case 2:
      ::madvise(at + 8 * kPageSize, 64 * kPageSize, MADV_DONTNEED);
      at[10 * kPageSize] = 3;
      break;
    case 3:
      if (::fork() == 0) {
        if (!shared) at[20 * kPageSize] = 4;  // a tracker does not see other mappers' writes
        ::_exit(0);
      }
      ::wait(nullptr);
      at[21 * kPageSize] = 4;  // copy on write after a fork
      break;
    case 4:
      ::mprotect(at, kBytes / 4, PROT_READ);
      ::mprotect(at, kBytes / 4, PROT_READ | PROT_WRITE);
      at[33 * kPageSize] = 5;
      break;
    case 5: {  // out and back again: the pages move, their tracking is lost on the way
      void* aside = ::mremap(at, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, anonymous(MAP_PRIVATE));
      if (aside == MAP_FAILED) break;  // a segment that mprotect has split: two mappings cannot move at once
      static_cast<char*>(aside)[40 * kPageSize] = 6;
      ::mremap(aside, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, at);
      break;
    }
    case 6:
      ::madvise(at, kBytes, 21 /* MADV_PAGEOUT */);
      at[50 * kPageSize] = 7;
      break;
    case 7:
      at[60 * kPageSize] = 8;
      ::madvise(at + 60 * kPageSize, kPageSize, MADV_DONTNEED);
      break;
    default:
      break;
  }
}

class Trackers : public testing::TestWithParam<std::tuple<size_t, TrackerKind>> {};

TEST_P(Trackers, NoWriteIsLost) {
  const Case& one = kCases[std::get<0>(GetParam())];
  const TrackerKind kind = std::get<1>(GetParam());
  const auto offered = available_trackers();
  if (std::find(offered.begin(), offered.end(), kind) == offered.end()) GTEST_SKIP() << "not on this kernel";
  char* at = one.map();
  ASSERT_NE(at, MAP_FAILED);
  TestChild child([&](uint64_t step) { act(at, one.kind == MappingClass::kShared, step); });
  const auto start = reinterpret_cast<uint64_t>(at);
  InterruptedCalls calls;
  std::unique_ptr<PageTracker> tracker;
  PageContents before;
  for (uint64_t step = 0; step < 10; ++step) {
    ASSERT_TRUE(child.run(step));
    StoppedProcess process = stop_process(find_processes({child.pid()}).at(0), calls);
    if (!tracker) tracker = make_tracker(kind, *process.remote);
    EXPECT_TRUE(tracker->alive());
    std::vector<PageRange> pages;
    tracker->begin_pass(true, true);
    tracker->collect(start, start + kBytes, one.kind, true, pages);
    resume_process(process);
    const PageContents now = read_memory(child.pid(), start, start + kBytes);
    uint64_t written = 0;
    for (const auto& [address, content] : now) {
      const auto range = std::find_if(pages.begin(), pages.end(),
                                      [a = address](const PageRange& r) { return r.start <= a && a < r.end; });
      const bool reported = range != pages.end() && range->written;
      const bool data = range != pages.end();
      // Reading the memory above made zero pages, or a huge one that a write into it has made 512 pages of.
      const bool zeros =
          std::all_of(content.begin(), content.end(), [](std::byte byte) { return byte == std::byte{0}; });
      written += reported && !range->zero && !zeros;
      if (before.empty() || before[address] == content || reported) continue;
      // Discarded pages are not data any more, and that is how they are told.
      EXPECT_TRUE(one.kind != MappingClass::kShared && !data)
          << one.name << " step " << step << " page " << (address - start) / kPageSize;
    }
    if (tracker->incremental() && (step == 1 || step >= 8)) {
      EXPECT_LE(written, std::string_view(one.name) == "anonymous" ? 20u : kPages / 2 + 20) << step;
    }
    before = now;
  }
  ::munmap(at, kBytes);
}

INSTANTIATE_TEST_SUITE_P(All, Trackers,
                         testing::Combine(testing::Range<size_t>(0, std::size(kCases)),
                                          testing::Values(TrackerKind::kKernelModule, TrackerKind::kUserfaultfd,
                                                          TrackerKind::kSoftDirty, TrackerKind::kEverything)),
                         [](const auto& one) {
                           return fmt::format("{}_{}", std::get<0>(one.param), test_name(std::get<1>(one.param)));
                         });

TEST(PageTracker, NamesAndChoice) {
  for (const TrackerKind kind : available_trackers()) EXPECT_EQ(parse_tracker(to_string(kind)), kind);
  EXPECT_EQ(parse_tracker("auto"), TrackerKind::kAuto);
  EXPECT_THROW(parse_tracker("magic"), Error);
  EXPECT_EQ(available_trackers().back(), TrackerKind::kEverything);
}

TEST(PageTracker, KnowsWhenItsAddressSpaceIsGone) {
  TestChild child([](uint64_t) { ::execl("/bin/sleep", "sleep", "100", nullptr); });
  InterruptedCalls calls;
  StoppedProcess process = stop_process(find_processes({child.pid()}).at(0), calls);
  std::vector<std::unique_ptr<PageTracker>> trackers;
  for (const TrackerKind kind : available_trackers()) trackers.push_back(make_tracker(kind, *process.remote));
  resume_process(process);
  for (const auto& tracker : trackers) EXPECT_TRUE(tracker->alive()) << tracker->name();
  child.start(1);
  for (const auto& tracker : trackers) {
    for (int i = 0; i < 1000 && tracker->alive(); ++i) ::usleep(10000);
    EXPECT_FALSE(tracker->alive()) << tracker->name();
  }
}

}  // namespace
}  // namespace icp::test

// SPDX-License-Identifier: GPL-2.0-or-later
// Shared memory of each kind, written in ways that the page tables of its mappers tell of, or do not.
#include <sys/shm.h>

#include <atomic>
#include <thread>

#include "engine/memory/object_watch.h"
#include "tests/unit/memory_test_support.h"

namespace icp::test {
namespace {

constexpr size_t kMiB = 1 << 20;
constexpr size_t kMiBs = 8, kBytes = kMiBs * kMiB;

// What the stop read whole; a sanitizer has some shared memory of its own, of less than 1 MiB.
uint64_t read_mib(const CaptureRig& rig) { return rig.stats.read_whole / kMiB; }
// Of a test's process, for its child.
std::string file_of(pid_t test) { return fmt::format("/dev/shm/icp-shared-memory-test-{}", test); }

enum class Kind { kAnonymous, kMemfd, kOpenMemfd, kUnlinked, kNamed, kSysv, kSparse };
constexpr int kKeptOpen = 200;

std::string name_of(Kind kind) {
  switch (kind) {
    case Kind::kAnonymous:
      return "anonymous";
    case Kind::kMemfd:
      return "memfd";
    case Kind::kOpenMemfd:
      return "open_memfd";
    case Kind::kUnlinked:
      return "unlinked_file";
    case Kind::kNamed:
      return "named_file";
    case Kind::kSysv:
      return "sysv";
    case Kind::kSparse:
      return "sparse";
  }
  return "?";
}

// What a child does; each writes to another page.
enum Action : uint64_t {
  kMake = 1,
  kNothing,
  kWrite,
  kWriteInThread,
  kWriteInChild,        // which has ended then
  kWriteInLivingChild,  // which lives on
  kRemove,              // frees a page, and reads it
  kWriteRemapped,       // through a second mapping made by mremap, gone again
  kWriteMappedAnew,     // through a second mapping of the file, gone again
  kWriteDescriptor,     // opened and closed
  kOpenAndWrite,        // the same, kept open
  kWriteAmongMany,      // more mmaps than the watch has room for
  kUnmapHalf,           // after writing to it
  kMakeOpenMemfd,       // beside what there is, and go on with it
};

// In the child.
class Memory {
 public:
  explicit Memory(Kind kind) : kind_(kind) {}

  void act(uint64_t action) {
    if (action == kMake) return make();
    const size_t page = action * 100 * kPageSize;
    switch (action) {
      case kWrite:
        at_[page]++;
        break;
      case kWriteInThread:
        std::thread([&] { at_[page]++; }).join();
        break;
      case kWriteInChild:
      case kWriteInLivingChild: {
        const pid_t child = ::fork();
        if (child == 0) {
          at_[page]++;
          std::atomic_ref<char>(at_[page + 1]).store(1);
          if (action == kWriteInLivingChild) {
            for (;;) ::pause();
          }
          ::_exit(0);
        }
        while (std::atomic_ref<char>(at_[page + 1]).load() == 0) ::usleep(1000);
        if (action == kWriteInChild) ::waitpid(child, nullptr, 0);
        break;
      }
      case kRemove:
        ::madvise(at_ + page, kPageSize, MADV_REMOVE);
        if (*static_cast<volatile char*>(at_ + page) != 0) std::abort();
        break;
      case kWriteRemapped: {
        auto* second = static_cast<char*>(::mremap(at_, 0, kBytes, MREMAP_MAYMOVE));
        if (second == MAP_FAILED) std::abort();
        second[page]++;
        ::munmap(second, kBytes);
        break;
      }
      case kWriteMappedAnew: {
        const UniqueFd file = open();
        auto* second = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0));
        if (second == MAP_FAILED) std::abort();
        second[page]++;
        ::munmap(second, kBytes);
        break;
      }
      case kWriteDescriptor:
        if (::pwrite(open().get(), "x", 1, static_cast<off_t>(page)) != 1) std::abort();
        break;
      case kOpenAndWrite:
        if (::dup2(open().get(), kKeptOpen) < 0 || ::pwrite(kKeptOpen, "x", 1, static_cast<off_t>(page)) != 1)
          std::abort();
        break;
      case kWriteAmongMany:
        for (int i = 0; i < 60000; ++i)
          ::munmap(::mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), kPageSize);
        at_[page]++;
        break;
      case kUnmapHalf:
        at_[page]++;
        ::munmap(at_ + kBytes / 2, kBytes / 2);
        break;
      case kMakeOpenMemfd:
        kind_ = Kind::kOpenMemfd;
        make();
        break;
      default:
        break;
    }
  }

 private:
  UniqueFd open() const {
    const auto start = reinterpret_cast<uint64_t>(at_);
    return UniqueFd(
        ::open(fmt::format("/proc/self/map_files/{:x}-{:x}", start, start + kBytes).c_str(), O_RDWR | O_CLOEXEC));
  }

  void make() {
    if (kind_ == Kind::kSparse) {
      constexpr size_t kReserve = 1ull << 40;
      at_ = static_cast<char*>(
          ::mmap(nullptr, kReserve, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      std::memset(at_ + kReserve / 2, 1, kMiB);
      return;
    }
    int flags = MAP_SHARED;
    if (kind_ == Kind::kAnonymous) flags |= MAP_ANONYMOUS;
    if (kind_ == Kind::kMemfd || kind_ == Kind::kOpenMemfd) file_.reset(::memfd_create("icp-test", MFD_CLOEXEC));
    if (kind_ == Kind::kUnlinked || kind_ == Kind::kNamed)
      file_.reset(::open(file_of(::getppid()).c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (file_ && ::ftruncate(file_.get(), kBytes) != 0) std::abort();
    if (kind_ == Kind::kSysv) {
      const int id = ::shmget(IPC_PRIVATE, kBytes, 0600);
      at_ = static_cast<char*>(::shmat(id, nullptr, 0));
      ::shmctl(id, IPC_RMID, nullptr);
    } else {
      at_ = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags, file_.get(), 0));
    }
    if (at_ == MAP_FAILED) std::abort();
    if (kind_ == Kind::kUnlinked) ::unlink(file_of(::getppid()).c_str());
    if (kind_ != Kind::kOpenMemfd) file_.reset();
    for (size_t page = 0; page < kBytes; page += kPageSize)
      std::memset(at_ + page, static_cast<int>(page >> 12 | 1), 64);
  }

  Kind kind_;
  UniqueFd file_;
  char* at_ = nullptr;
};

constexpr const char* kVariable = "ICP_SHARED_MEMORY_CHILD";
// Before tests are registered, which takes memory: how much of it is written depends on all other tests.
[[gnu::constructor(101)]] void be_the_child() {
  std::unique_ptr<Memory> memory;
  TestChild::serve_if_told(kVariable, [&](uint64_t kind, uint64_t action) {
    if (!memory) memory = std::make_unique<Memory>(static_cast<Kind>(kind));
    memory->act(action);
  });
}

std::string number_of(Kind kind) { return std::to_string(static_cast<int>(kind)); }

// Without it all shared memory is read whole in the stop.
#define SKIP_WITHOUT_WATCH() \
  if (!can_watch()) GTEST_SKIP() << "this kernel offers no tracker, or no watch, for that"
bool can_watch() {
  const std::vector<TrackerKind> trackers = available_trackers();
  if (trackers.front() != TrackerKind::kUserfaultfd && trackers.front() != TrackerKind::kKernelModule) return false;
  try {
    ObjectWatch::make();
    return true;
  } catch (const Error&) {
    return false;
  }
}

class SharedMemory : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_WATCH();
    ASSERT_TRUE(child_.run(kMake));
    rig_.take();
    EXPECT_EQ(rig_.difference, "");
  }
  ~SharedMemory() override {
    if (GetParam() == Kind::kNamed) ::unlink(file_of(::getpid()).c_str());
  }

  // A version of memory that is written between the last pre-copy and the stop.
  void take(const std::function<void()>& write) {
    rig_.before_stop = write;
    rig_.take();
    EXPECT_EQ(rig_.difference, "");
    EXPECT_LT(rig_.stats.pages_written, 300u);
  }
  void take(Action action) {
    take([&] { ASSERT_TRUE(child_.run(action)); });
  }
  bool open() const { return GetParam() == Kind::kOpenMemfd; }
  bool file() const { return GetParam() == Kind::kNamed || GetParam() == Kind::kUnlinked; }

  TestChild child_{kVariable, number_of(GetParam())};
  CaptureRig rig_{child_.pid()};
};

// Found: a write to protected memory sets the times of its inode, which was taken for somebody else's write, so that a
// segment was read whole in each stop if it had been written at all.
TEST_P(SharedMemory, IsNotReadInTheStop) {
  for (const Action action : {kNothing, kWrite, kWriteInThread, kWrite, kNothing}) {
    take(action);
    EXPECT_EQ(read_mib(rig_), open() ? kMiBs : 0) << action;
  }
}

TEST_P(SharedMemory, IsReadInTheStopWhenPageTablesDoNotTell) {
  std::vector<Action> actions = {kWriteInChild, kRemove, kWriteInLivingChild, kWrite};
  if (GetParam() != Kind::kSysv)  // whose mappings the kernel counts
    actions.insert(actions.end(), {kWriteAmongMany, kWriteRemapped, kWriteMappedAnew});
  if (file()) actions.push_back(kWriteDescriptor);
  if (GetParam() != Kind::kSysv) actions.push_back(kUnmapHalf);
  for (const Action action : actions) {
    take(action);
    EXPECT_EQ(read_mib(rig_), action == kWrite && !open() ? 0 : kMiBs) << action;
  }
}

// The same between two pre-copies: the second one looks at everything then, not the stop.
TEST_P(SharedMemory, IsReadByALaterPrecopyWhenPageTablesDoNotTell) {
  for (const Action action : {kWriteInChild, kRemove, kWriteMappedAnew}) {
    if (action == kWriteMappedAnew && GetParam() == Kind::kSysv) continue;
    rig_.take([&] { ASSERT_TRUE(child_.run(action)); });
    EXPECT_EQ(rig_.difference, "") << action;
    EXPECT_EQ(read_mib(rig_), open() ? kMiBs : 0) << action;
  }
}

// Two processes of the capsule, both tracked.
TEST_P(SharedMemory, OfSeveralProcessesIsNotReadInTheStop) {
  ASSERT_TRUE(child_.run(kWriteInLivingChild));
  rig_.take();
  take(kWrite);
  EXPECT_EQ(rig_.capsule.processes_size(), 2);
  EXPECT_EQ(read_mib(rig_), open() ? kMiBs : 0);
}

INSTANTIATE_TEST_SUITE_P(Kinds, SharedMemory,
                         ::testing::Values(Kind::kAnonymous, Kind::kMemfd, Kind::kOpenMemfd, Kind::kUnlinked,
                                           Kind::kNamed, Kind::kSysv),
                         [](const auto& kind) { return name_of(kind.param); });

// A process outside of the capsule maps it, writes, and unmaps it.
TEST(SharedMemoryOfOthers, OneThatComesAndGoes) {
  SKIP_WITHOUT_WATCH();
  TestChild child(kVariable, number_of(Kind::kNamed));
  ASSERT_TRUE(child.run(kMake));
  CaptureRig rig(child.pid());
  const auto write = [] {
    const UniqueFd file(::open(file_of(::getpid()).c_str(), O_RDWR | O_CLOEXEC));
    auto* at = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0));
    at[0]++;
    ::munmap(at, kBytes);
  };
  for (int version = 0; version < 3; ++version) {
    rig.before_stop = version == 1 ? std::function<void()>(write) : nullptr;
    rig.take();
    EXPECT_EQ(rig.difference, "");
    EXPECT_EQ(read_mib(rig), version == 1 ? kMiBs : 0);
  }
  ::unlink(file_of(::getpid()).c_str());
}

TEST(SharedMemoryOfOthers, OneThatHasItAllTheTime) {
  SKIP_WITHOUT_WATCH();
  TestChild child(kVariable, number_of(Kind::kNamed));
  ASSERT_TRUE(child.run(kMake));
  const UniqueFd file(::open(file_of(::getpid()).c_str(), O_RDWR | O_CLOEXEC));
  auto* at = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0));
  CaptureRig rig(child.pid());
  for (int version = 0; version < 3; ++version) {
    rig.before_stop = [&] { at[123456]++; };
    rig.take();
    EXPECT_EQ(rig.difference, "");
    EXPECT_EQ(read_mib(rig), kMiBs);
  }
  ::munmap(at, kBytes);
  ::unlink(file_of(::getpid()).c_str());
}

// Opened after the last pre-copy, and found open at the stop.
TEST(SharedMemoryOfOthers, ADescriptorThatIsNew) {
  SKIP_WITHOUT_WATCH();
  TestChild child(kVariable, number_of(Kind::kMemfd));
  ASSERT_TRUE(child.run(kMake));
  CaptureRig rig(child.pid());
  rig.before_stop = [&] { ASSERT_TRUE(child.run(kOpenAndWrite)); };
  rig.note_files = [&](MemoryCapture& capture) {
    const UniqueFd file(::open(fmt::format("/proc/{}/fd/{}", child.pid(), kKeptOpen).c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_NE(capture.object_of_file(file.get(), "/memfd:icp-test (deleted)"), 0u);
  };
  rig.take();
  EXPECT_EQ(rig.difference, "");
  EXPECT_EQ(read_mib(rig), kMiBs);
}

// Found: memory that came between two pre-copies was taken to be nobody else's. (Seed 89 of the property test.)
TEST(SharedMemoryOfOthers, AnOpenMemfdThatCameBetweenTwoPrecopies) {
  SKIP_WITHOUT_WATCH();
  TestChild child(kVariable, number_of(Kind::kAnonymous));
  ASSERT_TRUE(child.run(kMake));
  CaptureRig rig(child.pid());
  rig.take();
  rig.before_stop = [&] { ASSERT_TRUE(child.run(kWriteDescriptor)); };
  rig.take([&] { ASSERT_TRUE(child.run(kMakeOpenMemfd)); });
  EXPECT_EQ(rig.difference, "");
  EXPECT_EQ(read_mib(rig), kMiBs);
}

// What finds no room among the copies is looked at in the stop.
TEST(SharedMemoryOfOthers, ThereIsLittleRoomForCopies) {
  TestChild child(kVariable, number_of(Kind::kOpenMemfd));
  ASSERT_TRUE(child.run(kMake));
  MemoryOptions options;
  options.staging_limit = 3 * kMiB;
  CaptureRig rig(child.pid(), options);
  for (int version = 0; version < 3; ++version) {
    rig.before_stop = [&] { ASSERT_TRUE(child.run(kWrite)); };
    rig.take();
    EXPECT_EQ(rig.difference, "");
  }
  EXPECT_LT(rig.stats.pages_written, 300u);
}

// Protecting all of a reserve, of which little is there, would cost its page tables.
TEST(SharedMemoryOfOthers, ASparseReserveIsNotProtected) {
  TestChild child(kVariable, number_of(Kind::kSparse));
  ASSERT_TRUE(child.run(kMake));
  CaptureRig rig(child.pid());
  rig.take();
  rig.take();
  EXPECT_EQ(read_mib(rig), 1u);
  EXPECT_LT(rig.stop_ns, 100'000'000u);
}

}  // namespace
}  // namespace icp::test

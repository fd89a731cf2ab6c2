// SPDX-License-Identifier: GPL-2.0-or-later
// Random sequences of everything that changes memory, in a child and its children, with versions taken in between:
// each version must hold exactly what memory held at its stop.
//
// ICP_PROPERTY_SEQUENCES sets the number of sequences (200), ICP_PROPERTY_SEED the first seed (1).
#include <gtest/gtest.h>
#include <setjmp.h>
#include <sys/shm.h>
#include <sys/uio.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <random>

#include "engine/base/procfs.h"
#include "tests/unit/memory_test_support.h"

namespace icp::test {
namespace {

// All that happens, happens in slots at fixed addresses, so that the parent can write there as well.
constexpr uint64_t kArena = 0x200000000000;
constexpr uint64_t kSlotBytes = 8 << 20;
constexpr size_t kSlots = 12;
constexpr uint64_t kMaxPages = 64;
constexpr uint64_t kHugePage = 2 << 20;

constexpr int kGuardInstall = 102;  // MADV_GUARD_INSTALL, Linux 6.13

sigjmp_buf on_fault;
void jump_out(int) { siglongjmp(on_fault, 1); }

// The child's side.
class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {
    ::mmap(at(0), kMaxPages * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }

  void batch() {
    struct sigaction action {};
    action.sa_handler = jump_out;
    action.sa_flags = SA_NODEFER;
    ::sigaction(SIGSEGV, &action, nullptr);
    ::sigaction(SIGBUS, &action, nullptr);
    for (uint64_t i = 0, steps = 1 + below(8); i < steps; ++i) {
      if (sigsetjmp(on_fault, 1) == 0) step();
    }
  }

 private:
  uint64_t below(uint64_t limit) { return random_() % limit; }
  static char* at(uint64_t slot) { return reinterpret_cast<char*>(kArena + slot * kSlotBytes); }
  // Some pages of a slot.
  std::pair<char*, size_t> part(uint64_t slot) {
    const uint64_t pages = huge_[slot] ? 2 * kHugePage / kPageSize : kMaxPages;
    const uint64_t first = below(pages);
    return {at(slot) + first * kPageSize, (1 + below(std::min<uint64_t>(pages - first, 40))) * kPageSize};
  }

  void step() {
    const uint64_t slot = below(kSlots);
    switch (below(14)) {
      case 0:
      case 1:
        return map(slot);
      case 2:
        ::munmap(part(slot).first, part(slot).second);
        return;
      case 3:
        return remap(slot);
      case 4: {
        const auto [start, bytes] = part(slot);
        constexpr int kProt[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE};
        ::mprotect(start, bytes, kProt[below(4)]);
        return;
      }
      case 5:
        return advise(slot);
      case 6:
        return fork_one(slot);
      case 7:
        return move_brk();
      case 8:
        return write_file(slot);
      default:
        return write(slot);
    }
  }

  void map(uint64_t slot) {
    huge_[slot] = anonymous_[slot] = false;
    fd_[slot] = -1;
    const size_t bytes = kMaxPages * kPageSize;
    const int rw = PROT_READ | PROT_WRITE;
    switch (below(8)) {
      case 0:
        ::mmap(at(slot), bytes, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        anonymous_[slot] = true;
        break;
      case 1:
        ::mmap(at(slot), bytes, rw, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        break;
      case 2:
        huge_[slot] = true;
        ::mmap(at(slot), 2 * kHugePage, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        ::madvise(at(slot), 2 * kHugePage, MADV_HUGEPAGE);
        break;
      case 3:
      case 4:
        fd_[slot] = ::memfd_create("property", MFD_CLOEXEC);
        return map_file(slot, below(2) == 0 ? MAP_SHARED : MAP_PRIVATE);
      case 5:
      case 6: {
        fd_[slot] = ::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        return map_file(slot, below(2) == 0 ? MAP_SHARED : MAP_PRIVATE);
      }
      default: {
        const int id = ::shmget(IPC_PRIVATE, bytes, 0600);
        ::munmap(at(slot), bytes);
        ::shmat(id, at(slot), 0);
        ::shmctl(id, IPC_RMID, nullptr);
      }
    }
  }

  void map_file(uint64_t slot, int flags) {
    (void)!::ftruncate(fd_[slot], kMaxPages * kPageSize);
    for (int i = 0; i < 10; ++i) write_file(slot);
    ::mmap(at(slot), kMaxPages * kPageSize, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd_[slot], 0);
  }

  void remap(uint64_t slot) {
    const auto [start, bytes] = part(slot);
    const uint64_t other = below(kSlots);
    if (other == slot) return;
    anonymous_[other] = anonymous_[other] && anonymous_[slot];
    ::mremap(start, bytes, bytes + below(8) * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED,
             at(other) + below(16) * kPageSize);
  }

  void advise(uint64_t slot) {
    constexpr int kAdvice[] = {MADV_DONTNEED,
                               MADV_DONTNEED,
                               MADV_FREE,
                               MADV_HUGEPAGE,
                               MADV_NOHUGEPAGE,
                               MADV_REMOVE,
                               20 /* COLD */,
                               21 /* PAGEOUT */,
                               25 /* COLLAPSE */,
                               kGuardInstall,
                               103 /* no guard */};
    const auto [start, bytes] = part(slot);
    const int advice = kAdvice[below(std::size(kAdvice))];
    // Linux 6.18 never comes back from installing a guard over a write-protected page of a file or of shared memory:
    // it discards the page, which leaves a marker, which it discards ...
    if (advice == kGuardInstall && !anonymous_[slot]) return;
    ::madvise(start, bytes, advice);
  }

  void write(uint64_t slot) {
    const auto [start, bytes] = part(slot);
    const uint64_t how = below(4);
    for (size_t page = 0; page < bytes; page += kPageSize) {
      if (how == 0) {
        std::memset(start + page, 0, kPageSize);
      } else if (how == 1) {
        seen_ = seen_ + start[page];  // a read maps zero pages and file pages
      } else {
        const uint64_t value = random_();
        std::memcpy(start + page + below(kPageSize / 8) * 8, &value, sizeof value);
      }
    }
  }

  void write_file(uint64_t slot) {
    if (fd_[slot] < 0) return;
    const uint64_t value = random_();
    (void)!::pwrite(fd_[slot], &value, sizeof value, static_cast<off_t>(below(kMaxPages * kPageSize)));
  }

  void move_brk() {
    auto* now = static_cast<char*>(::sbrk(0));
    if (below(2) == 0 && grown_ > 0) {
      ::sbrk(-static_cast<intptr_t>(kPageSize));
      --grown_;
      return;
    }
    if (::sbrk(4 * kPageSize) != now) return;
    grown_ += 4;
    now[below(4 * kPageSize)] = static_cast<char>(random_());
  }

  void fork_one(uint64_t slot) {
    const bool stays = children_ < 3 && below(3) == 0;
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (int i = 0; i < 4; ++i) {
        if (sigsetjmp(on_fault, 1) == 0) write(i == 0 ? slot : below(kSlots));
      }
      while (stays) ::pause();
      ::_exit(0);
    }
    if (stays) {
      ++children_;
    } else if (below(2) == 0) {
      ::waitpid(pid, nullptr, 0);
    }
  }

  std::mt19937_64 random_;
  std::array<int, kSlots> fd_ = [] {
    std::array<int, kSlots> none;
    none.fill(-1);
    return none;
  }();
  std::array<bool, kSlots> huge_{}, anonymous_{};
  uint64_t grown_ = 0, children_ = 0;
  volatile long seen_ = 0;
};

constexpr const char* kVariable = "ICP_PROPERTY_CHILD";
// Before tests are registered, which takes memory: how much of it is written depends on all other tests.
[[gnu::constructor(101)]] void be_the_child() {
  std::unique_ptr<Mutator> mutator;
  TestChild::serve_if_told(kVariable, [&](uint64_t seed, uint64_t) {
    if (!mutator) mutator = std::make_unique<Mutator>(seed);
    mutator->batch();
  });
}

// Writes into the child's slots from outside, as process_vm_writev does for MPI.
void write_from_outside(pid_t pid, std::mt19937_64& random) {
  for (const MapsEntry& entry : MapsEntry::read(pid)) {
    if (!entry.writable || entry.start < kArena || entry.end > kArena + kSlots * kSlotBytes || random() % 3 != 0)
      continue;
    uint64_t value = random();
    const iovec here{&value, sizeof value};
    const iovec there{reinterpret_cast<void*>(entry.start + random() % ((entry.end - entry.start) / 8) * 8),
                      sizeof value};
    (void)!::process_vm_writev(pid, &here, 1, &there, 1, 0);
  }
}

uint64_t setting(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

class MemoryProperty : public testing::TestWithParam<TrackerKind> {};

TEST_P(MemoryProperty, VersionsHoldWhatMemoryHeld) {
  const auto offered = available_trackers();
  if (GetParam() != TrackerKind::kAuto && std::find(offered.begin(), offered.end(), GetParam()) == offered.end())
    GTEST_SKIP() << "not on this kernel";
  const uint64_t first = setting("ICP_PROPERTY_SEED", 1);
  const uint64_t share = GetParam() == TrackerKind::kEverything ? 10 : 1;  // the last resort needs fewer
  const uint64_t count = std::max<uint64_t>(1, setting("ICP_PROPERTY_SEQUENCES", 200) / share);
  for (uint64_t seed = first; seed < first + count; ++seed) {
    SCOPED_TRACE(fmt::format("ICP_PROPERTY_SEED={}", seed));
    std::mt19937_64 random(seed * 7919);
    TestChild child(kVariable, std::to_string(seed));
    MemoryOptions options;
    options.tracker = GetParam();
    CaptureRig rig(child.pid(), options);
    ASSERT_TRUE(child.run(0));
    for (int version = 0; version < 5; ++version) {
      rig.precopy = random() % 3 != 0;
      const bool wait_first = random() % 2 == 0;
      const bool outside = random() % 2 == 0;
      rig.take([&] {
        child.start(1);  // runs beside the pre-copy and may be stopped anywhere
        if (wait_first) child.wait();
        if (wait_first && outside) write_from_outside(child.pid(), random);
      });
      ASSERT_EQ(rig.difference, "");
      ASSERT_TRUE(child.wait());
      ASSERT_TRUE(child.run(1));
      if (outside) write_from_outside(child.pid(), random);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Trackers, MemoryProperty,
                         testing::Values(TrackerKind::kAuto, TrackerKind::kKernelModule, TrackerKind::kSoftDirty,
                                         TrackerKind::kEverything),
                         [](const auto& one) { return test_name(one.param); });

}  // namespace
}  // namespace icp::test

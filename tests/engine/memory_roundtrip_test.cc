// SPDX-License-Identifier: GPL-2.0-or-later
// Memory of every kind, there and back.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

constexpr size_t kMiB = 1 << 20;

class MemoryRoundtrip : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
  }
};

char* map(size_t bytes, int prot, int flags, int fd = -1, off_t offset = 0) {
  void* at = ::mmap(nullptr, bytes, prot, flags, fd, offset);
  CHECK_OR_DIE(at != MAP_FAILED);
  return static_cast<char*>(at);
}

char byte_of(size_t i, unsigned seed) { return static_cast<char>((i * 2654435761u + seed) >> 7); }

void fill(char* at, size_t bytes, unsigned seed) {
  for (size_t i = 0; i < bytes; ++i) at[i] = byte_of(i, seed);
}

void expect_filled(const char* at, size_t bytes, unsigned seed) {
  for (size_t i = 0; i < bytes; ++i) CHECK_OR_DIE(at[i] == byte_of(i, seed));
}

TEST_F(MemoryRoundtrip, AnonymousWithHolesAndProtections) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  char* data = map(64 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
                  fill(data + kMiB, kMiB, 1);
                  fill(data + 40 * kMiB, 3 * kMiB, 2);
                  CHECK_OR_DIE(::mprotect(data + 40 * kMiB, kMiB, PROT_READ) == 0);
                  CHECK_OR_DIE(::mprotect(data + 41 * kMiB, kMiB, PROT_NONE) == 0);
                  gate.ready();
                  gate.go();
                  expect_filled(data + kMiB, kMiB, 1);
                  CHECK_OR_DIE(::mprotect(data + 41 * kMiB, kMiB, PROT_READ) == 0);
                  expect_filled(data + 40 * kMiB, 3 * kMiB, 2);
                  for (size_t i = 0; i < kMiB; ++i) CHECK_OR_DIE(data[10 * kMiB + i] == 0);
                  return 0;
                },
                {.generations = 2, .versions = 2}),
            0);
}

// Pages whose neighbours lie in the files of other versions, over the borders of mappings that touch.
TEST_F(MemoryRoundtrip, ScatteredOverVersionsAndMappings) {
  constexpr size_t kPage = 4096, kPages = 12 * 2 * kMiB / kPage;
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  char* data = map(kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
                  for (size_t at = 0; at < kPages * kPage; at += 4 * kMiB)  // every other one has other flags
                    CHECK_OR_DIE(::madvise(data + at, 2 * kMiB, MADV_DONTDUMP) == 0);
                  std::vector<uint64_t> written(kPages);
                  std::atomic<bool> stop = false;
                  std::thread writer([&] {
                    for (uint64_t n = 1; !stop; ++n) {
                      const size_t page = n <= kPages ? n - 1 : n * 2654435761u % kPages;
                      fill(data + page * kPage, kPage, static_cast<unsigned>(n));
                      written[page] = n;
                      if (n == kPages) gate.ready();
                      if (n > kPages && n % 16 == 0) ::usleep(100);
                    }
                  });
                  gate.go();
                  stop = true;
                  writer.join();
                  for (size_t i = 0; i < kPages; ++i)
                    expect_filled(data + i * kPage, kPage, static_cast<unsigned>(written[i]));
                  return 0;
                },
                {.generations = 3, .versions = 12}),
            0);
}

TEST_F(MemoryRoundtrip, TerabytesOfReserveCostNothing) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              char* reserve = map(4ull << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
              CHECK_OR_DIE(::mprotect(reserve + (1ull << 40), kMiB, PROT_READ | PROT_WRITE) == 0);
              fill(reserve + (1ull << 40), kMiB, 3);
              gate.ready_and_go();
              expect_filled(reserve + (1ull << 40), kMiB, 3);
              CHECK_OR_DIE(::mprotect(reserve, 4ull << 40, PROT_NONE) == 0);
              return 0;
            }),
            0);
}

TEST_F(MemoryRoundtrip, SharedBetweenRelatives) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  char* shared = map(2 * kMiB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
                  fill(shared, 2 * kMiB, 4);
                  const pid_t child = ::fork();
                  if (child == 0) {
                    while (shared[0] != 'g') ::usleep(1000);
                    shared[1] = 'c';
                    ::_exit(0);
                  }
                  gate.ready_and_go();
                  expect_filled(shared, 2 * kMiB, 4);
                  shared[0] = 'g';
                  int status = 0;
                  CHECK_OR_DIE(::waitpid(child, &status, 0) == child && status == 0);
                  CHECK_OR_DIE(shared[1] == 'c');
                  return 0;
                },
                {.generations = 3, .versions = 2}),
            0);
}

TEST_F(MemoryRoundtrip, FilesPrivateAndShared) {
  const TempDir directory;
  const std::string path = directory.path() + "/data";
  ASSERT_EQ(::chown(directory.path().c_str(), 65534, 65534), 0);
  EXPECT_EQ(roundtrip(
                [&path](Gate& gate) {
                  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
                  std::vector<char> content(4 * kMiB);
                  fill(content.data(), content.size(), 5);
                  CHECK_OR_DIE(::write(fd, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
                  char* shared = map(kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, kMiB);
                  char* copy = map(2 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 2 * kMiB);
                  const char* read_only = map(kMiB, PROT_READ, MAP_SHARED, fd, 0);
                  ::close(fd);
                  std::memset(copy + 4096, 'p', 4096);
                  shared[10] = 's';
                  gate.ready_and_go();
                  CHECK_OR_DIE(shared[10] == 's' && copy[5000] == 'p');
                  CHECK_OR_DIE(std::memcmp(copy, content.data() + 2 * kMiB, 4096) == 0);
                  CHECK_OR_DIE(std::memcmp(copy + 8192, content.data() + 2 * kMiB + 8192, kMiB) == 0);
                  CHECK_OR_DIE(std::memcmp(read_only, content.data(), kMiB) == 0);
                  shared[11] = 't';
                  const int again = ::open(path.c_str(), O_RDONLY);
                  char byte = 0;
                  CHECK_OR_DIE(::pread(again, &byte, 1, kMiB + 11) == 1 && byte == 't');
                  return 0;
                },
                {.generations = 2, .versions = 2}),
            0);
}

// As PMIx has it: one process writes, others map the file for reading only, and the file is removed when they end.
TEST_F(MemoryRoundtrip, FileThatARelativeWritesAndIsGone) {
  const std::string base = "/tmp/icp-test-read-" + std::to_string(::getpid()), path = base + "/data";
  for (const bool gone : {false, true}) {
    RoundtripOptions options;
    options.restore = [&](RestoreOptions&) {
      if (gone) std::filesystem::remove_all(base);
    };
    EXPECT_EQ(roundtrip(
                  [&](Gate& gate) {
                    CHECK_OR_DIE(::mkdir(base.c_str(), 0700) == 0);
                    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
                    CHECK_OR_DIE(fd >= 0 && ::ftruncate(fd, kMiB) == 0);
                    char* const written = map(kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
                    const int reading = ::open(path.c_str(), O_RDONLY);
                    ::close(fd);
                    fill(written, kMiB, 1);
                    const pid_t reader = ::fork();
                    if (reader == 0) {
                      CHECK_OR_DIE(::munmap(written, kMiB) == 0);
                      const char* const shared = map(kMiB, PROT_READ, MAP_SHARED, reading);
                      const char* const own = map(kMiB, PROT_READ, MAP_PRIVATE, reading);
                      ::close(reading);
                      while (shared[0] != 'x') ::usleep(1000);
                      CHECK_OR_DIE(::mprotect(const_cast<char*>(shared), kMiB, PROT_READ | PROT_WRITE) != 0);
                      ::_exit(own[0] == 'x' && std::memcmp(shared + 1, own + 1, kMiB - 1) == 0 ? 0 : 1);
                    }
                    ::close(reading);
                    gate.ready_and_go();
                    expect_filled(written, kMiB, 1);
                    written[0] = 'x';
                    int status = 0;
                    CHECK_OR_DIE(::waitpid(reader, &status, 0) == reader);
                    std::filesystem::remove_all(base);
                    return status;
                  },
                  options),
              0);
  }
}

TEST_F(MemoryRoundtrip, MemfdAndDeletedFile) {
  const TempDir directory;
  ASSERT_EQ(::chown(directory.path().c_str(), 65534, 65534), 0);
  EXPECT_EQ(roundtrip(
                [&directory](Gate& gate) {
                  const int memfd = ::memfd_create("scratch", MFD_CLOEXEC);
                  CHECK_OR_DIE(::ftruncate(memfd, kMiB) == 0);
                  char* in_memfd = map(kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, memfd);
                  fill(in_memfd, kMiB, 6);
                  const std::string path = directory.path() + "/gone";
                  const int gone = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
                  CHECK_OR_DIE(::ftruncate(gone, kMiB) == 0);
                  char* in_gone = map(kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, gone);
                  fill(in_gone, kMiB, 7);
                  CHECK_OR_DIE(::unlink(path.c_str()) == 0);
                  gate.ready_and_go();
                  expect_filled(in_memfd, kMiB, 6);
                  expect_filled(in_gone, kMiB, 7);
                  in_memfd[5] = 'x';
                  in_gone[5] = 'y';
                  char byte = 0;
                  CHECK_OR_DIE(::pread(memfd, &byte, 1, 5) == 1 && byte == 'x');
                  CHECK_OR_DIE(::pread(gone, &byte, 1, 5) == 1 && byte == 'y');
                  return 0;
                },
                {.generations = 3, .versions = 2}),
            0);
}

TEST_F(MemoryRoundtrip, WriteThroughDescriptorIsNotLost) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const int memfd = ::memfd_create("written", MFD_CLOEXEC);
                  CHECK_OR_DIE(::ftruncate(memfd, kMiB) == 0);
                  char* mapped = map(kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, memfd);
                  fill(mapped, kMiB, 8);
                  gate.ready();
                  // Between two versions, through the file only.
                  ::usleep(30'000);
                  CHECK_OR_DIE(::pwrite(memfd, "through", 7, 4096) == 7);
                  gate.go();
                  CHECK_OR_DIE(std::memcmp(mapped + 4096, "through", 7) == 0);
                  return 0;
                },
                {.versions = 4, .pause_ms = 25}),
            0);
}

TEST_F(MemoryRoundtrip, HeapStackAndBrk) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  char* heap = static_cast<char*>(::sbrk(3 * kMiB));
                  fill(heap, 3 * kMiB, 9);
                  char on_stack[200'000];
                  fill(on_stack, sizeof on_stack, 10);
                  gate.ready_and_go();
                  expect_filled(heap, 3 * kMiB, 9);
                  expect_filled(on_stack, sizeof on_stack, 10);
                  char* more = static_cast<char*>(::sbrk(kMiB));
                  CHECK_OR_DIE(more == heap + 3 * kMiB);
                  fill(more, kMiB, 11);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(MemoryRoundtrip, DiscardedPagesReadZero) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  char* data = map(4 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
                  fill(data, 4 * kMiB, 12);
                  gate.ready();
                  ::usleep(30'000);  // between versions
                  CHECK_OR_DIE(::madvise(data + kMiB, kMiB, MADV_DONTNEED) == 0);
                  char* moved = static_cast<char*>(::mremap(data + 2 * kMiB, kMiB, 2 * kMiB, MREMAP_MAYMOVE));
                  CHECK_OR_DIE(moved != MAP_FAILED);
                  gate.go();
                  expect_filled(data, kMiB, 12);
                  for (size_t i = kMiB; i < 2 * kMiB; ++i) CHECK_OR_DIE(data[i] == 0);
                  for (size_t i = 0; i < kMiB; ++i)
                    CHECK_OR_DIE(moved[i] == static_cast<char>(((i + 2 * kMiB) * 2654435761u + 12) >> 7));
                  return 0;
                },
                {.versions = 4, .pause_ms = 25}),
            0);
}

TEST_F(MemoryRoundtrip, LockedAdvisedGrowsdown) {
  EXPECT_EQ(roundtrip([](Gate& gate) {
              char* data = map(2 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
              CHECK_OR_DIE(::mlock(data, 4096) == 0);
              CHECK_OR_DIE(::madvise(data + kMiB, kMiB, MADV_DONTFORK) == 0);
              char* stack = map(64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN);
              fill(data, 2 * kMiB, 13);
              fill(stack, 64 << 10, 14);
              gate.ready_and_go();
              expect_filled(data, 2 * kMiB, 13);
              expect_filled(stack, 64 << 10, 14);
              if (::fork() == 0) {
                static_cast<volatile char*>(data)[0];
                static_cast<void>(static_cast<volatile char*>(data)[kMiB]);  // not there in a child
                ::_exit(0);
              }
              int status = 0;
              CHECK_OR_DIE(::wait(&status) > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
              return 0;
            }),
            0);
}

uint64_t proportional_bytes(const char* at) {
  FILE* const file = ::fopen("/proc/self/smaps", "r");
  CHECK_OR_DIE(file != nullptr);
  char line[512];
  bool inside = false;
  uint64_t sum = 0;
  while (::fgets(line, sizeof line, file) != nullptr) {
    unsigned long start = 0, end = 0, kib = 0;
    if (std::sscanf(line, "%lx-%lx ", &start, &end) == 2) {
      inside = start <= reinterpret_cast<uintptr_t>(at) && reinterpret_cast<uintptr_t>(at) < end;
    } else if (inside && std::sscanf(line, "Pss: %lu", &kib) == 1) {
      sum += kib << 10;
    }
  }
  ::fclose(file);
  return sum;
}

uint64_t bytes_below(const std::string& directory) {
  uint64_t sum = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory))
    if (entry.is_regular_file()) sum += entry.file_size();
  return sum;
}

constexpr size_t kFamily = 16 * kMiB, kPage = 4096;
constexpr int kChildren = 4;

// What relatives have in common, and each some pages of its own: another content, none at all, and a shorter mapping.
struct FamilyBoard {
  std::atomic<int> made, measured;
  std::atomic<bool> restored;
  std::atomic<uint64_t> bytes;
};

void change_own_pages(char* data, int number) {
  if (number == 0) return;
  data[static_cast<size_t>(number) * 10 * kPage] = 'x';
  CHECK_OR_DIE(::madvise(data + static_cast<size_t>(number) * 20 * kPage, kPage, MADV_DONTNEED) == 0);
  if (number == 2) CHECK_OR_DIE(::munmap(data + kFamily - 3 * kPage, 3 * kPage) == 0);
  if (number == 3) CHECK_OR_DIE(::mprotect(data + 1000 * kPage, 100 * kPage, PROT_READ) == 0);
}

// With `file`, that is what shows where a page is none of the process's own.
void check_pages(const char* data, int number, bool file) {
  const size_t changed = static_cast<size_t>(number) * 10 * kPage, gone = static_cast<size_t>(number) * 20 * kPage;
  const size_t bytes = number == 2 ? kFamily - 3 * kPage : kFamily;
  for (size_t i = 0; i < bytes; ++i) {
    char expected = byte_of(i, 77);
    if (number != 0 && i == changed) expected = 'x';
    if (number != 0 && i >= gone && i < gone + kPage) expected = file ? byte_of(i + kPage, 99) : '\0';
    CHECK_OR_DIE(data[i] == expected);
  }
}

void be_relative(char* data, FamilyBoard& board, int number, bool file) {
  change_own_pages(data, number);
  ++board.made;
  while (!board.restored) ::usleep(1000);
  board.bytes += proportional_bytes(data);
  ++board.measured;
  while (board.measured < kChildren + 1) ::usleep(1000);
  check_pages(data, number, file);
  data[500 * kPage] = static_cast<char>(number);  // still nobody else's
  ++board.measured;
  while (board.measured < 2 * (kChildren + 1)) ::usleep(1000);
  CHECK_OR_DIE(data[500 * kPage] == static_cast<char>(number));
}

struct FamilyCase {
  RoundtripOptions options;
  useconds_t alone_us = 0;  // before the children are made
  bool lazy = false;
  double most = 1.5;                         // of the memory that the family shares, in the image
  std::function<int()> make_file = nullptr;  // the memory is a private mapping of it, from its second page on
};

char* map_family(const FamilyCase& family) {
  if (!family.make_file) return map(kFamily, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  const int fd = family.make_file();
  CHECK_OR_DIE(fd >= 0 && ::ftruncate(fd, kPage + kFamily) == 0);
  char* const whole = map(kPage + kFamily, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  fill(whole, kPage + kFamily, 99);
  ::munmap(whole, kPage + kFamily);
  char* const data = map(kFamily, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, kPage);
  ::close(fd);
  return data;
}

void expect_family_kept(FamilyCase family) {
  uint64_t image = 0;
  std::string path;
  family.options.session = [&](SessionConfig& config) { path = config.image_path; };
  family.options.restore = [&](RestoreOptions& options) {
    image = bytes_below(path);
    options.lazy = family.lazy;
  };
  EXPECT_EQ(roundtrip(
                [&family](Gate& gate) {
                  auto& board = *new (map(kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS)) FamilyBoard{};
                  char* const data = map_family(family);
                  fill(data, kFamily, 77);
                  if (family.alone_us > 0) gate.ready();
                  ::usleep(family.alone_us);
                  for (int number = 1; number <= kChildren; ++number) {
                    // Every other one is the child of a child.
                    const bool grandchild = number % 2 == 0;
                    if (::fork() != 0) continue;
                    if (grandchild && ::fork() != 0) {
                      while (::wait(nullptr) > 0) continue;
                      ::_exit(0);
                    }
                    be_relative(data, board, number, family.make_file != nullptr);
                    ::_exit(0);
                  }
                  while (board.made < kChildren) ::usleep(1000);
                  if (family.alone_us == 0) gate.ready();
                  gate.go();
                  board.restored = true;
                  be_relative(data, board, 0, family.make_file != nullptr);
                  int status = 0;
                  while (::wait(&status) > 0) CHECK_OR_DIE(status == 0);
                  if (!family.lazy) CHECK_OR_DIE(board.bytes < 1.5 * kFamily);
                  return 0;
                },
                family.options),
            0);
  EXPECT_LT(image, family.most * kFamily);
}

TEST_F(MemoryRoundtrip, PagesSharedByForkStayShared) {
  expect_family_kept({.options = {.generations = 3, .versions = 2}, .most = 1.6});
}

TEST_F(MemoryRoundtrip, PagesOfFilesSharedByForkStayShared) {
  const TempDir directory;
  ASSERT_EQ(::chown(directory.path().c_str(), 65534, 65534), 0);
  expect_family_kept({.options = {.generations = 3, .versions = 2}, .most = 1.6, .make_file = [&directory] {
                        return ::open((directory.path() + "/data").c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
                      }});
}

// All that is left of the file is its mapping.
TEST_F(MemoryRoundtrip, PagesOfObjectsSharedByForkStayShared) {
  if (::geteuid() != 0) GTEST_SKIP() << "a file without a name that is mapped privately takes CAP_CHECKPOINT_RESTORE";
  expect_family_kept({.options = {.generations = 3, .versions = 2}, .most = 2.6, .make_file = [] {
                        return ::memfd_create("below", MFD_CLOEXEC);
                      }});
}

// The first versions have the parent alone.
TEST_F(MemoryRoundtrip, PagesSharedByForkBetweenVersions) {
  expect_family_kept({.options = {.generations = 2, .versions = 3, .pause_ms = 500}, .alone_us = 900'000, .most = 1.6});
}

TEST_F(MemoryRoundtrip, PagesSharedByForkRestoredLazily) {
  if (::geteuid() != 0) GTEST_SKIP() << "a lazy restart takes vm.unprivileged_userfaultfd";
  expect_family_kept({.options = {.generations = 2}, .lazy = true, .most = 1.6});
}

const RoundtripOptions kSeveral{.generations = 3, .versions = 2};

int fault_signal;
sigjmp_buf after_fault;

// The signal that an access ends with, 0: none.
int fault_of(const std::function<void()>& access) {
  struct sigaction action {};
  action.sa_handler = [](int signal) { ::siglongjmp(after_fault, signal); };
  CHECK_OR_DIE(::sigaction(SIGSEGV, &action, nullptr) == 0);
  fault_signal = sigsetjmp(after_fault, 1);
  if (fault_signal == 0) access();
  return fault_signal;
}

// Keys that are given out, what they allow each thread, and the memory that has them, execute-only memory among it.
TEST_F(MemoryRoundtrip, ProtectionKeys) {
  if (const int key = ::pkey_alloc(0, 0); key < 0)
    GTEST_SKIP() << "this processor has no protection keys";
  else
    ::pkey_free(key);
  EXPECT_EQ(
      roundtrip(
          [](Gate& gate) {
            volatile char* const code = map(kPage, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS);
            code[0] = static_cast<char>(0xc3);  // ret
            CHECK_OR_DIE(::mprotect(const_cast<char*>(code), kPage, PROT_EXEC) == 0);
            const int first = ::pkey_alloc(0, 0), key = ::pkey_alloc(0, PKEY_DISABLE_WRITE),
                      unused = ::pkey_alloc(0, PKEY_DISABLE_ACCESS);
            CHECK_OR_DIE(::pkey_free(first) == 0);
            volatile char* const data = map(4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
            fill(const_cast<char*>(data), 4 * kPage, 5);
            CHECK_OR_DIE(::pkey_mprotect(const_cast<char*>(data), 2 * kPage, PROT_READ | PROT_WRITE, key) == 0);
            std::atomic<bool> ready = false, go = false, right = false;
            std::thread other([&] {
              CHECK_OR_DIE(::pkey_set(key, 0) == 0);
              ready = true;
              while (!go) data[kPage] = 'y';
              right = ::pkey_get(key) == 0;
            });
            while (!ready) ::usleep(1000);
            gate.ready_and_go();
            go = true;
            other.join();
            CHECK_OR_DIE(right && data[kPage] == 'y' && ::pkey_get(key) == PKEY_DISABLE_WRITE);
            CHECK_OR_DIE(fault_of([&] { data[0] = 'x'; }) == SIGSEGV && fault_of([&] { data[2 * kPage] = 'x'; }) == 0);
            CHECK_OR_DIE(fault_of([&] { static_cast<void>(code[0]); }) == SIGSEGV);
            reinterpret_cast<void (*)()>(reinterpret_cast<uintptr_t>(code))();
            const int next = ::pkey_alloc(0, 0);
            CHECK_OR_DIE(next > 0 && next != key && next != unused && ::pkey_free(unused) == 0);
            return 0;
          },
          kSeveral),
      0);
}

TEST_F(MemoryRoundtrip, SealedMemory) {
  constexpr long kMseal = 462;
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  char* const data = map(64 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
                  char* const shared = map(64 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
                  fill(data, 64 * kPage, 6);
                  fill(shared, 64 * kPage, 7);
                  if (::syscall(kMseal, data + 16 * kPage, 32 * kPage, 0) != 0) return errno == ENOSYS ? 0 : 1;
                  CHECK_OR_DIE(::syscall(kMseal, shared, 64 * kPage, 0) == 0);
                  gate.ready_and_go();
                  expect_filled(data, 64 * kPage, 6);
                  expect_filled(shared, 64 * kPage, 7);
                  data[20 * kPage] = 1;
                  CHECK_OR_DIE(::munmap(data + 20 * kPage, kPage) == -1 && errno == EPERM);
                  CHECK_OR_DIE(::munmap(shared, kPage) == -1 && errno == EPERM);
                  CHECK_OR_DIE(::munmap(data, 16 * kPage) == 0 && ::munmap(data + 48 * kPage, 16 * kPage) == 0);
                  return 0;
                },
                kSeveral),
            0);
}

// Of single mappings, with and without one of the process.
TEST_F(MemoryRoundtrip, NumaPolicies) {
  constexpr int kBind = 2, kLocal = 4, kOfAddress = 2;
  const auto policy_of = [](const void* at) {
    int mode = -1;
    CHECK_OR_DIE(::syscall(SYS_get_mempolicy, &mode, nullptr, 0, at, kOfAddress) == 0);
    return mode;
  };
  for (const bool process : {false, true}) {
    EXPECT_EQ(roundtrip(
                  [&](Gate& gate) {
                    const uint64_t node = 1;
                    char* const data = map(8 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
                    fill(data, 8 * kPage, 8);
                    if (process) CHECK_OR_DIE(::syscall(SYS_set_mempolicy, kBind, &node, 64) == 0);
                    CHECK_OR_DIE(::syscall(SYS_mbind, data + 2 * kPage, 2 * kPage, kBind, &node, 64, 0) == 0);
                    CHECK_OR_DIE(::syscall(SYS_mbind, data + 6 * kPage, kPage, kLocal, nullptr, 0, 0) == 0);
                    gate.ready_and_go();
                    expect_filled(data, 8 * kPage, 8);
                    CHECK_OR_DIE(policy_of(data) == 0 && policy_of(data + 2 * kPage) == kBind &&
                                 policy_of(data + 4 * kPage) == 0 && policy_of(data + 6 * kPage) == kLocal);
                    return 0;
                  },
                  kSeveral),
              0);
  }
}

}  // namespace
}  // namespace icp::test

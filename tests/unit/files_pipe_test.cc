// SPDX-License-Identifier: GPL-2.0-or-later
// Pipes and FIFOs: data in flight, ends, packets, capacity.
#include <poll.h>
#include <sys/ioctl.h>

#include "engine/files/pipe.h"
#include "files_test_util.h"

namespace icp::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

short events(int fd) {
  pollfd request{fd, POLLIN | POLLOUT, 0};
  ::poll(&request, 1, 0);
  return request.revents;
}

int waiting(int fd) {
  int bytes = -1;
  ::ioctl(fd, FIONREAD, &bytes);
  return bytes;
}

TEST(Pipe, DataInFlightComesBackAndStaysInTheOriginal) {
  const std::string text(100000, 'x');
  Child child([&] {
    int ends[2];
    must(::pipe2(ends, O_NONBLOCK) == 0 && ::fcntl(ends[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17);
    must(::write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    must(::write(ends[1], "tail", 4) == 4);
    const pid_t grandchild = ::fork();
    if (grandchild == 0) {
      ::close(ends[0]);
      ::pause();
    }
    wait_until_closed(grandchild, ends[0]);
  });
  for (int round = 0; round < 2; round++) {  // the second time shows that nothing was taken out
    const Captured captured = capture(child);
    EXPECT_TRUE(captured.file(4).pipe().write_end());
    EXPECT_EQ(captured.file(4).id(), captured.file(4, 1).id());
    EXPECT_EQ(captured.file(3).pipe().data().size() + captured.file(4).pipe().data().size(), text.size() + 4);
    Restored restored(captured);
    EXPECT_EQ(::fcntl(restored.fd(3), F_GETPIPE_SZ), 1 << 17);
    EXPECT_EQ(read_some(restored.fd(3)), text + "tail");
    EXPECT_TRUE(would_block(restored.fd(3)));
    EXPECT_EQ(::write(restored.fd(4), "more", 4), 4);
    EXPECT_EQ(read_some(restored.fd(3)), "more");
  }
}

TEST(Pipe, ManySmallWritesAreCopiedWhole) {
  Child child([&] {
    int ends[2];
    must(::pipe2(ends, O_DIRECT) == 0);
    for (int i = 0; i < 16; i++) must(::write(ends[1], "abc", 3) == 3);
    must(::fcntl(ends[1], F_SETFL, 0) == 0);
  });
  const Captured captured = capture(child);
  EXPECT_EQ(captured.file(3).pipe().data().size(), 48u);
}

TEST(Pipe, PacketsKeepTheirBoundaries) {
  Child child([&] {
    int ends[2];
    must(::pipe2(ends, O_DIRECT) == 0);
    must(::write(ends[1], "one", 3) == 3 && ::write(ends[1], "three", 5) == 5);
  });
  const Captured captured = capture(child);
  EXPECT_THAT(captured.file(3).pipe().packets(), ElementsAre(3u, 5u));
  Restored restored(captured);
  EXPECT_EQ(read_some(restored.fd(3)), "one");
  EXPECT_EQ(read_some(restored.fd(3)), "three");
  EXPECT_EQ(::write(restored.fd(4), "x", 1), 1);
  EXPECT_EQ(::write(restored.fd(4), "y", 1), 1);
  EXPECT_EQ(read_some(restored.fd(3)), "x");
}

TEST(Pipe, AClosedEndStaysClosed) {
  Child child([&] {
    int read_only[2], write_only[2];
    must(::pipe(read_only) == 0 && ::pipe(write_only) == 0);
    must(::write(read_only[1], "rest", 4) == 4);
    ::close(read_only[1]);
    ::close(write_only[0]);
  });
  const Captured captured = capture(child);
  Restored restored(captured);
  EXPECT_EQ(read_some(restored.fd(3)), "rest");
  char byte;
  EXPECT_EQ(::read(restored.fd(3), &byte, 1), 0);
  EXPECT_TRUE(events(restored.fd(6)) & POLLERR);
}

TEST(Pipe, RefusesAnEndOutsideOfTheJobByName) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const std::string path = "/proc/" + std::to_string(::getpid()) + "/fd/";
  Child child([&] { must(::open((path + std::to_string(ends[0])).c_str(), O_RDONLY) == 3); });
  const std::string error = error_of(ErrorKind::kRefused, [&] { capture(child); });
  EXPECT_THAT(error, HasSubstr("descriptor 3"));
  EXPECT_THAT(error, HasSubstr("other end is outside of the job"));
  ASSERT_EQ(check(child).size(), 1u);
  ::close(ends[1]);
  EXPECT_EQ(check(child).size(), 0u) << "nobody has the other end now";
  ::close(ends[0]);
}

TEST(Pipe, SeveralDescriptionsOfOneEnd) {
  Child child([&] {
    int ends[2];
    must(::pipe(ends) == 0);
    must(::open("/proc/self/fd/4", O_WRONLY | O_NONBLOCK) == 5);
    must(::open("/proc/self/fd/3", O_RDWR) == 6);
    must(::write(5, "data", 4) == 4);
  });
  const Captured captured = capture(child);
  Restored restored(captured);
  EXPECT_FALSE(::fcntl(restored.fd(4), F_GETFL) & O_NONBLOCK);
  EXPECT_TRUE(::fcntl(restored.fd(5), F_GETFL) & O_NONBLOCK);
  EXPECT_EQ(::fcntl(restored.fd(6), F_GETFL) & O_ACCMODE, O_RDWR);
  EXPECT_EQ(::write(restored.fd(6), "!", 1), 1);
  EXPECT_EQ(read_some(restored.fd(3)), "data!");
}

TEST(Pipe, BelongsToTheUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  Child child([] {
    int ends[2];
    must(::pipe(ends) == 0);
  });
  const Captured captured = capture(child);
  FileRestoreOptions opts = options();
  opts.identity = {65534, 65534, {}};
  Restored restored(captured, opts);
  struct stat status {};
  ASSERT_EQ(::fstat(restored.fd(3), &status), 0);
  EXPECT_EQ(status.st_uid, 65534u);
}

TEST(Fifo, IsFoundByPathAndRefilled) {
  TempDir dir("/tmp");
  const std::string path = dir / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  Captured captured;
  {
    Child child([&] {
      must(::open(path.c_str(), O_RDONLY | O_NONBLOCK) == 3 && ::open(path.c_str(), O_WRONLY) == 4);
      must(::write(4, "data", 4) == 4);
    });
    captured = capture(child);
    EXPECT_EQ(captured.file(3).pipe().fifo_path(), path);
    EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored restored(captured); }), HasSubstr("in use"));
  }
  Restored restored(captured);
  EXPECT_EQ(read_some(restored.fd(3)), "data");
  EXPECT_EQ(waiting(restored.fd(3)), 0);
  EXPECT_EQ(::write(restored.fd(4), "x", 1), 1);
  EXPECT_FALSE(::fcntl(restored.fd(4), F_GETFL) & O_NONBLOCK);
}

TEST(Fifo, AReaderWithoutAnyWriterIsFine) {
  TempDir dir("/tmp");
  const std::string path = dir / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  Child child([&] { must(::open(path.c_str(), O_RDONLY | O_NONBLOCK) == 3); });
  EXPECT_EQ(check(child).size(), 0u);
  const UniqueFd writer(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(check(child).size(), 1u);
}

TEST(Fifo, ADeletedOneBecomesAPipe) {
  TempDir dir("/tmp");
  const std::string path = dir / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  Child child([&] {
    must(::open(path.c_str(), O_RDWR) == 3 && ::write(3, "data", 4) == 4);
    must(::unlink(path.c_str()) == 0);
  });
  const Captured captured = capture(child);
  Restored restored(captured);
  EXPECT_EQ(read_some(restored.fd(3)), "data");
}

}  // namespace
}  // namespace icp::test

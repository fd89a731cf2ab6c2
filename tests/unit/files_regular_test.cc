// SPDX-License-Identifier: GPL-2.0-or-later
// Regular files, directories, devices, memory objects and locks: capture and restore.
#include <dirent.h>
#include <sys/file.h>

#include <chrono>

#include "engine/files/kept_files.h"
#include "files_test_util.h"

namespace icp::test {
namespace {

using ::testing::HasSubstr;

off_t offset(int fd) { return ::lseek(fd, 0, SEEK_CUR); }

TEST(RegularFile, KeepsPositionFlagsAndSharing) {
  TempDir dir("/tmp");
  const std::string path = dir.write("data", "0123456789");
  Child child([&] {
    must(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) == 3);
    must(::write(3, "abcdefgh", 8) == 8 && ::lseek(3, 5, SEEK_SET) == 5);
    must(::dup(3) == 4);
    must(::open(path.c_str(), O_RDONLY) == 5);
    if (::fork() == 0) ::pause();
  });
  const Captured captured = capture(child);
  ASSERT_EQ(captured.capsule.processes_size(), 2);
  EXPECT_EQ(captured.file(3).id(), captured.file(4).id());
  EXPECT_EQ(captured.file(3).id(), captured.file(3, 1).id());
  EXPECT_NE(captured.file(3).id(), captured.file(5).id());
  EXPECT_EQ(captured.file(3).position(), 5u);
  EXPECT_TRUE(captured.capsule.processes(0).fds(3).cloexec());
  EXPECT_FALSE(captured.capsule.processes(0).fds(4).cloexec());
  EXPECT_EQ(captured.file(0).id(), captured.file(2).id());

  Restored restored(captured);
  EXPECT_EQ(offset(restored.fd(3)), 5);
  EXPECT_EQ(offset(restored.fd(5)), 0);
  const int flags = ::fcntl(restored.fd(3), F_GETFL);
  EXPECT_EQ(flags & (O_ACCMODE | O_APPEND), O_RDWR | O_APPEND);
  EXPECT_EQ(content(path), "abcdefgh") << "O_TRUNC must not be repeated";
}

TEST(RegularFile, CutsGrownFilesByPolicyAndOnlyAtTheEnd) {
  TempDir dir("/tmp");
  const std::string path = dir.write("log", "12345");
  Child child([&] { must(::open(path.c_str(), O_WRONLY | O_APPEND) == 3); });
  const Captured captured = capture(child);
  dir.write("log", "123456789");

  FileRestoreOptions fail = options();
  fail.changed = ChangedFiles::kRefuse;
  EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored restored(captured, fail); }), HasSubstr(path));
  FileRestoreOptions accept = options();
  accept.changed = ChangedFiles::kAccept;
  Restored accepted(captured, accept);
  (*accepted).apply_side_effects();
  EXPECT_EQ(content(path), "123456789");

  Restored restored(captured);
  EXPECT_EQ(content(path), "123456789");
  (*restored).apply_side_effects();
  EXPECT_EQ(content(path), "12345");
}

TEST(RegularFile, LeavesGrownFilesThatAreOnlyReadAlone) {
  TempDir dir("/tmp");
  const std::string path = dir.write("input", "12345");
  Child child([&] { must(::open(path.c_str(), O_RDONLY) == 3); });
  const Captured captured = capture(child);
  dir.write("input", "123456789");
  Restored restored(captured);
  (*restored).apply_side_effects();
  EXPECT_EQ(content(path), "123456789");
}

constexpr size_t kLarge = 300 << 10;  // bytes: more than an image holds of a file

TEST(RegularFile, NamesWhatIsMissingShorterOrOfAnotherType) {
  TempDir dir("/tmp");
  const std::string path = dir.write("data", std::string(kLarge, 'x'));
  Child child([&] { must(::open(path.c_str(), O_RDWR) == 3); });
  const Captured captured = capture(child);
  dir.write("data", "123");
  EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored restored(captured); }), HasSubstr(path));
  std::filesystem::remove(path);
  EXPECT_THAT(error_of(ErrorKind::kSystem, [&] { Restored restored(captured); }), HasSubstr(path));
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored restored(captured); }), HasSubstr("FIFO"));
}

TEST(RegularFile, SmallFilesGetBackWhatTheyHeld) {
  TempDir dir("/tmp");
  const std::string path = dir.write("data", "12345");
  Child child([&] { must(::open(path.c_str(), O_RDWR | O_APPEND) == 3 && ::lseek(3, 2, SEEK_SET) == 2); });
  const Captured captured = capture(child);
  for (const char* now : {"123", "54321", "123456", "5432100000", ""}) {
    dir.write("data", now);
    Restored restored(captured);
    EXPECT_EQ(content(path), now);
    (*restored).apply_side_effects();
    EXPECT_EQ(content(path), "12345");
    EXPECT_EQ(offset(restored.fd(3)), 2);
    FileRestoreOptions refuse = options(), accept = options();
    refuse.changed = ChangedFiles::kRefuse;
    accept.changed = ChangedFiles::kAccept;
    dir.write("data", now);
    EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored again(captured, refuse); }), HasSubstr(path));
    Restored accepted(captured, accept);
    (*accepted).apply_side_effects();
    EXPECT_EQ(content(path), now);
  }
}

TEST(RegularFile, LargeFilesThatWereChangedAreRefusedAndOnesThatGrewCutBack) {
  TempDir dir("/tmp");
  const std::string then(kLarge, 'x'), path = dir.write("data", then);
  Child child([&] { must(::open(path.c_str(), O_RDWR) == 3); });
  const Captured captured = capture(child);
  std::string changed = then;
  changed[200000] = 'y';
  for (const std::string& now : {changed, changed + "more"}) {
    dir.write("data", now);
    EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored restored(captured); }),
                ::testing::AllOf(HasSubstr(path), HasSubstr("--changed-files accept")));
    FileRestoreOptions accept = options();
    accept.changed = ChangedFiles::kAccept;
    Restored accepted(captured, accept);
    (*accepted).apply_side_effects();
    EXPECT_EQ(content(path), now);
  }
  dir.write("data", then + "more");
  Restored restored(captured);
  (*restored).apply_side_effects();
  EXPECT_EQ(content(path), then);
}

TEST(RegularFile, OneThatIsGoneIsMadeAgainWithItsDirectories) {
  TempDir dir("/tmp");
  std::filesystem::create_directories(dir / "a/b");
  const std::string path = dir.write("a/b/data", "12345"), input = dir.write("a/b/input", "in");
  Child child([&] {
    must(::open(path.c_str(), O_RDWR) == 3 && ::fchmod(3, 0640) == 0 && ::lseek(3, 4, SEEK_SET) == 4);
    must(::open(path.c_str(), O_WRONLY) == 4 && ::open(input.c_str(), O_RDONLY) == 5);
  });
  const Captured captured = capture(child);
  std::filesystem::remove_all(dir / "a");
  { Restored failed(captured); }
  EXPECT_FALSE(std::filesystem::exists(dir / "a")) << "made by a restore that went no further";
  Restored restored(captured);
  (*restored).apply_side_effects();
  EXPECT_EQ(content(path), "12345");
  EXPECT_EQ(content(input), "in");
  struct stat status {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0640u);
  EXPECT_EQ(offset(restored.fd(3)), 4);
  EXPECT_EQ(::write(restored.fd(4), "ab", 2), 2);
  EXPECT_EQ(content(path), "ab345");
}

TEST(RegularFile, WhatHasItsNameNowIsNotTouched) {
  TempDir dir("/tmp");
  const std::string then(kLarge, 'x'), path = dir.write("log", then);
  Child child([&] { must(::open(path.c_str(), O_WRONLY | O_APPEND) == 3); });
  const Captured captured = capture(child);
  std::filesystem::rename(path, dir / "log.1");
  const std::string other(kLarge + 5, 'z');
  dir.write("log", other);
  {
    Restored restored(captured);
    (*restored).apply_side_effects();
    EXPECT_EQ(::write(restored.fd(3), "y", 1), 1);
    EXPECT_EQ(content(path), other);
    EXPECT_EQ(content(dir / "log.1"), then + "y");
  }
  std::filesystem::remove(dir / "log.1");
  EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored restored(captured); }), HasSubstr("another file"));
  EXPECT_EQ(content(path), other);
}

TEST(RegularFile, AJournalOfALaterTimeIsPutAside) {
  TempDir dir("/tmp");
  const std::string path = dir.write("data", "12345"), journal = path + "-journal";
  Child child([&] { must(::open(path.c_str(), O_RDWR) == 3); });
  const Captured captured = capture(child);
  FileRestoreOptions opts = options();
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  opts.taken_unix_ns = static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  ::usleep(20'000);  // times of files are kept by the kernel's tick
  dir.write("data", "54321");
  dir.write("data-journal", "undo");
  Restored restored(captured, opts);
  EXPECT_TRUE(std::filesystem::exists(journal));
  (*restored).apply_side_effects();
  EXPECT_EQ(content(path), "12345");
  EXPECT_FALSE(std::filesystem::exists(journal));
  EXPECT_EQ(content(journal + ".after-checkpoint"), "undo");
}

TEST(RegularFile, GetsItsOldNameBack) {
  TempDir dir("/tmp");
  const std::string path = dir.write("result.tmp", "12345");
  Child child([&] { must(::open(path.c_str(), O_WRONLY) == 3); });
  const Captured captured = capture(child);
  std::filesystem::rename(path, dir / "result");
  Restored restored(captured);
  EXPECT_FALSE(std::filesystem::exists(path));
  (*restored).apply_side_effects();
  EXPECT_EQ(content(path), "12345");
  EXPECT_FALSE(std::filesystem::exists(dir / "result"));
}

TEST(PathDescriptor, StandsForAPlace) {
  TempDir dir("/tmp");
  ASSERT_EQ(::symlink("target", (dir / "link").c_str()), 0);
  ASSERT_EQ(::mkfifo((dir / "fifo").c_str(), 0600), 0);
  Child child([&] {
    must(::open((dir / "link").c_str(), O_PATH | O_NOFOLLOW) == 3 && ::open((dir / "fifo").c_str(), O_PATH) == 4);
    must(::open("/dev/null", O_PATH) == 5);
  });
  EXPECT_TRUE(check(child).empty());
  const Captured captured = capture(child);
  {
    Restored restored(captured);
    char text[20] = "";
    EXPECT_EQ(::readlinkat(restored.fd(3), "", text, sizeof text), 6);
    EXPECT_STREQ(text, "target");
    struct stat status {};
    EXPECT_EQ(::fstat(restored.fd(4), &status), 0);
    EXPECT_TRUE(S_ISFIFO(status.st_mode));
    EXPECT_NE(::fcntl(restored.fd(5), F_GETFL) & O_PATH, 0);
  }
  ASSERT_EQ(::unlink((dir / "link").c_str()), 0);
  ASSERT_EQ(::symlink("other", (dir / "link").c_str()), 0);
  EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored restored(captured); }), HasSubstr("link"));
}

TEST(Directory, OneThatWasRemovedIsStillOpen) {
  TempDir dir("/tmp");
  std::filesystem::create_directory(dir / "gone");
  Child child([&] {
    must(::open((dir / "gone").c_str(), O_RDONLY | O_DIRECTORY) == 3 && ::open((dir / "gone").c_str(), O_PATH) == 4);
    must(::rmdir((dir / "gone").c_str()) == 0);
  });
  EXPECT_TRUE(check(child).empty());
  Captured captured = capture(child);
  EXPECT_EQ(captured.file(3).identity().path(), dir / "gone");
  Restored restored(captured);
  struct stat one {
  }, other{};
  EXPECT_EQ(::fstat(restored.fd(3), &one) | ::fstat(restored.fd(4), &other), 0);
  EXPECT_EQ(one.st_nlink, 0u);
  EXPECT_EQ(one.st_ino, other.st_ino);
  EXPECT_LT(::openat(restored.fd(3), "new", O_CREAT | O_WRONLY, 0600), 0);
  EXPECT_FALSE(std::filesystem::exists(dir / "gone"));
}

// What was read for one version is not read for the next; what has been written in the middle since is found.
TEST(KeptFiles, FollowFilesOverVersions) {
  TempDir dir("/tmp");
  std::string now(kLarge, 'x');
  const std::string path = dir.write("data", now);
  Child child([&] { must(::open(path.c_str(), O_RDWR) == 3); });
  KeptFiles kept;
  const auto take = [&] {
    Findings findings;
    check_files(child.refs(), {}, findings, {}, &kept);
    Captured result;
    std::vector<StoppedProcess> processes(1);
    processes[0].ref = child.refs()[0];
    pb::Process* state = result.capsule.add_processes();
    capture_files(processes, {state}, {}, nullptr, result.capsule, {}, &kept);
    return result;
  };
  for (int round = 0; round < 4; ++round) {
    if (round == 1) now += std::string(kLarge, 'y');
    if (round == 2) now[5] = 'z';
    if (round == 3) now.resize(kLarge + 10);
    ::usleep(20'000);  // times of files are kept by the kernel's tick
    dir.write("data", now);
    const Captured captured = take();
    EXPECT_EQ(captured.file(3).regular().hashed(), now.size()) << round;
    ::usleep(20'000);
    dir.write("data", now + "more");
    Restored restored(captured);
    (*restored).apply_side_effects();
    EXPECT_EQ(content(path), now) << round;
  }
}

TEST(RegularFile, IsOpenedWithTheUsersRightsOnly) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir("/tmp");
  const std::string path = dir.write("secret", "12345");
  ::chmod(path.c_str(), 0600);
  Child child([&] { must(::open(path.c_str(), O_RDWR) == 3); });
  const Captured captured = capture(child);
  FileRestoreOptions as_nobody = options();
  as_nobody.identity = {65534, 65534, {}};
  EXPECT_THAT(error_of(ErrorKind::kSystem, [&] { Restored restored(captured, as_nobody); }),
              HasSubstr("Permission denied"));
}

TEST(RegularFile, FollowsRenamesAndRefusesALostName) {
  TempDir dir("/tmp");
  const std::string renamed = dir.write("renamed", "x"), linked = dir.write("linked", "x");
  Child child([&] { must(::open(renamed.c_str(), O_RDONLY) == 3 && ::open(linked.c_str(), O_RDONLY) == 4); });
  std::filesystem::rename(renamed, dir / "new name");
  EXPECT_EQ(capture(child).file(3).identity().path(), dir / "new name");
  std::filesystem::create_hard_link(linked, dir / "other");
  std::filesystem::remove(linked);
  EXPECT_TRUE(check(child).empty());
  EXPECT_EQ(capture(child).file(4).identity().path(), dir / "other");
  std::filesystem::create_directory(dir / "elsewhere");
  std::filesystem::rename(dir / "other", dir / "elsewhere/other");
  EXPECT_THAT(error_of(ErrorKind::kRefused, [&] { capture(child); }), HasSubstr(linked));
  const Findings findings = check(child);
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].where, "descriptor 4");
  EXPECT_THAT(findings[0].what, HasSubstr(linked));
}

TEST(RegularFile, NamesNeedNotBeText) {
  TempDir dir("/tmp");
  const std::string path = dir.write("caf\xe9 \xff (deleted)", "12345");
  Child child([&] { must(::open(path.c_str(), O_RDONLY) == 3); });
  const Captured captured = capture(child);
  Captured reread;
  ASSERT_TRUE(reread.capsule.ParseFromString(captured.capsule.SerializeAsString()));
  Restored restored(reread);
  EXPECT_EQ(read_some(restored.fd(3)), "12345");
}

TEST(RegularFile, TakesASymbolicLinkRelativeToTheRoot) {
  TempDir dir("/tmp");
  const std::string path = dir.write("data", "12345");
  Child child([&] { must(::open(path.c_str(), O_RDONLY) == 3); });
  Captured captured = capture(child);
  std::filesystem::rename(path, dir / "moved");
  std::filesystem::create_symlink("moved", path);
  Restored restored(captured);
  EXPECT_EQ(read_some(restored.fd(3)), "12345");
}

TEST(ObjectFile, AsksForMemfdsShmFilesAndDeletedFiles) {
  TempDir dir("/tmp");
  const std::string path = dir.write("gone", "12345"), shm = "/dev/shm/icp-files-test-" + std::to_string(::getpid());
  std::vector<std::string> targets;
  Child child([&] {
    must(::open(path.c_str(), O_RDWR | O_APPEND) == 3 && ::unlink(path.c_str()) == 0);
    must(::lseek(3, 2, SEEK_SET) == 2);
    must(::memfd_create("mine", 0) == 4);
    must(::open(shm.c_str(), O_RDWR | O_CREAT, 0600) == 5);
  });
  const Captured captured = capture(child.refs(), {}, [&](int fd, const std::string& target) {
    struct stat status {};
    EXPECT_EQ(::fstat(fd, &status), 0);
    targets.push_back(target);
    return static_cast<uint32_t>(100 + targets.size());
  });
  ::unlink(shm.c_str());
  EXPECT_THAT(targets, ::testing::ElementsAre(path + " (deleted)", "/memfd:mine (deleted)", shm));
  EXPECT_EQ(captured.file(4).object().object(), 102u);

  FileRestoreOptions opts = options();
  opts.open_object = [&](uint32_t object, uint32_t) {
    EXPECT_THAT(object, ::testing::AllOf(::testing::Ge(101u), ::testing::Le(103u)));
    return UniqueFd(::memfd_create("restored", MFD_CLOEXEC));
  };
  Restored restored(captured, opts);
  EXPECT_EQ(offset(restored.fd(3)), 2);
  opts.open_object = [](uint32_t, uint32_t) { return UniqueFd(); };
  EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored again(captured, opts); }), HasSubstr("memory object 101"));
}

TEST(Capture, ManyFilesCostLittle) {
  TempDir dir("/tmp");
  Child child([&] {
    for (int i = 0; i < 200; i++) must(::open(dir.write(std::to_string(i), "x").c_str(), O_RDONLY) == 3 + i);
    for (int i = 0; i < 3; i++) {
      if (::fork() == 0) ::pause();
    }
  });
  const auto start = std::chrono::steady_clock::now();
  const Captured captured = capture(child);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(captured.capsule.files_size(), 201);
  EXPECT_LT(took.count(), 500);
  RecordProperty("milliseconds", std::to_string(took.count()));
}

TEST(Directory, GoesOnWhereItWas) {
  TempDir dir("/tmp");
  for (const char* name : {"a", "b", "c", "d"}) dir.write(name, "");
  Child child([&] {
    DIR* open = ::opendir((dir / "").c_str());
    must(open && ::dirfd(open) == 3);
    ::rewinddir(open);
  });
  const Captured captured = capture(child);
  Restored restored(captured);
  DIR* open = ::fdopendir(::dup(restored.fd(3)));
  ASSERT_TRUE(open);
  int count = 0;
  while (::readdir(open)) count++;
  EXPECT_EQ(count, 6);
  ::closedir(open);
}

TEST(CharDevice, PlainOnesComeBack) {
  Child child([] {
    must(::open("/dev/zero", O_RDONLY) == 3 && ::open("/dev/urandom", O_RDONLY | O_NONBLOCK) == 4);
    must(::open("/dev/full", O_WRONLY) == 5);
  });
  Captured captured = capture(child);
  Restored restored(captured);
  EXPECT_EQ(read_some(restored.fd(3), 4), std::string(4, '\0'));
  EXPECT_EQ(read_some(restored.fd(4), 4).size(), 4u);
  EXPECT_EQ(::write(restored.fd(5), "x", 1), -1);
  captured.mutable_file(3).mutable_identity()->set_path("/dev/null");
  error_of(ErrorKind::kImage, [&] { Restored again(captured); });
}

TEST(OuterStream, IsReplacedByTheNewTasks) {
  TempDir dir("/tmp");
  int in[2], out[2];
  ASSERT_EQ(::pipe2(in, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(out, O_CLOEXEC), 0);
  const std::string path = dir.write("out", "");
  struct stat in_stat {
  }, out_stat{}, file_stat{};
  ::fstat(in[0], &in_stat);
  ::fstat(out[1], &out_stat);
  ::stat(path.c_str(), &file_stat);
  // The child's setup runs after its descriptors are closed, so hand the pipes over by /proc.
  const std::string self = "/proc/" + std::to_string(::getpid()) + "/fd/";
  Child child([&] {
    const int a = ::open((self + std::to_string(in[0])).c_str(), O_RDONLY);
    const int b = ::open((self + std::to_string(out[1])).c_str(), O_WRONLY);
    const int c = ::open(path.c_str(), O_WRONLY | O_APPEND);
    must(::dup2(a, 0) == 0 && ::dup2(b, 1) == 1 && ::dup2(c, 2) == 2);
    must(::close_range(3, ~0u, 0) == 0 && ::dup(1) == 3);
    must(::open("/dev/null", O_RDONLY) == 4);
    if (::fork() == 0) ::pause();
  });
  const Captured captured = capture(child.refs(), {{3, 0, in_stat.st_dev, in_stat.st_ino, false},
                                                   {3, 1, out_stat.st_dev, out_stat.st_ino, false},
                                                   {3, 2, file_stat.st_dev, file_stat.st_ino, true}});
  EXPECT_EQ(captured.file(0).outer().fd(), 0);
  EXPECT_EQ(captured.file(1).outer().rank(), 3);
  EXPECT_EQ(captured.file(3).id(), captured.file(1).id());
  EXPECT_EQ(captured.file(2, 1).outer().fd(), 2);
  EXPECT_TRUE(captured.file(4).has_char_device());
  EXPECT_THAT(error_of(ErrorKind::kImage, [&] { Restored restored(captured); }), HasSubstr("task 3"));

  int fresh[2];
  ASSERT_EQ(::pipe2(fresh, O_CLOEXEC), 0);
  FileRestoreOptions opts = options();
  opts.outer[3] = {fresh[0], fresh[1], fresh[1]};
  Restored restored(captured, opts);
  EXPECT_EQ(::write(restored.fd(3), "hello", 5), 5);
  EXPECT_EQ(read_some(restored.fd(0)), "hello");
  for (const int fd : {in[0], in[1], out[0], out[1], fresh[0], fresh[1]}) ::close(fd);
}

// flock() is the process's own call: tests/engine/descriptors_roundtrip_test.cc.
TEST(Locks, FlockIsKnownAndOfdComeBackUnlessTaken) {
  TempDir dir("/tmp");
  const std::string path = dir.write("lock", "0123456789");
  Captured captured;
  {
    Child child([&] {
      must(::open(path.c_str(), O_RDWR) == 3 && ::flock(3, LOCK_EX) == 0);
      must(::open(path.c_str(), O_RDWR) == 4);
      struct flock part {};
      part.l_type = F_WRLCK, part.l_start = 2, part.l_len = 3;
      must(::fcntl(4, F_OFD_SETLK, &part) == 0);
      must(::open("/dev/null", O_RDWR) == 5);
      if (::fork() == 0) ::pause();
    });
    captured = capture(child);
  }
  EXPECT_EQ(captured.file(3).flock().type(), F_WRLCK);
  ASSERT_EQ(captured.file(4).ofd_locks_size(), 1);
  const UniqueFd other(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  {
    Restored restored(captured);
    struct flock probe {};
    probe.l_type = F_RDLCK, probe.l_start = 4, probe.l_len = 1;
    EXPECT_EQ(::fcntl(other.get(), F_OFD_GETLK, &probe), 0);
    EXPECT_EQ(probe.l_type, F_WRLCK);
  }
  struct flock taken {};
  taken.l_type = F_RDLCK, taken.l_start = 4, taken.l_len = 1;
  ASSERT_EQ(::fcntl(other.get(), F_OFD_SETLK, &taken), 0);
  EXPECT_THAT(error_of(ErrorKind::kSystem, [&] { Restored restored(captured); }), HasSubstr(path + " was locked"));
}

TEST(Locks, PosixLocksBelongToTheProcess) {
  TempDir dir("/tmp");
  const std::string path = dir.write("lock", "0123456789");
  Child child([&] {
    must(::open(path.c_str(), O_RDWR) == 3 && ::dup(3) == 4);
    struct flock whole {};
    whole.l_type = F_WRLCK, whole.l_start = 5;
    must(::fcntl(3, F_SETLK, &whole) == 0);
    if (::fork() == 0) ::pause();
  });
  const Captured captured = capture(child);
  ASSERT_EQ(captured.capsule.processes(0).posix_locks_size(), 1);
  EXPECT_EQ(captured.capsule.processes(1).posix_locks_size(), 0);
  const pb::PosixLock& lock = captured.capsule.processes(0).posix_locks(0);
  EXPECT_EQ(lock.file(), captured.file(3).id());
  EXPECT_EQ(lock.start(), 5u);
  EXPECT_EQ(lock.length(), 0u);
}

}  // namespace
}  // namespace icp::test

// SPDX-License-Identifier: GPL-2.0-or-later
// Paths of an image that lead, by themselves or by a link that was put in the way, to where no file of a program is:
// nothing is opened, made, renamed or bound there. As root, whom nothing else would stop.
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include <atomic>
#include <thread>

#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/memory/restored_files.h"
#include "files_test_util.h"

namespace icp::test {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kRefused[] = "which keeps no files of programs";

int root_fd() { return options().root_fd; }

// Directories that the kernel makes up, as far as they are there.
std::vector<std::string> made_up_directories() {
  std::vector<std::string> found = {"/proc", "/proc/sys/kernel", "/proc/self", "/sys/kernel"};
  for (const char* path : {"/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified", "/sys/kernel/debug",
                           "/sys/kernel/tracing", "/sys/kernel/security", "/sys/fs/bpf", "/sys/kernel/config"}) {
    struct statfs info {};
    if (::statfs(path, &info) == 0 && known_file_system(info.f_type) != FileSystemKind::kFiles) found.push_back(path);
  }
  return found;
}

// Files of theirs that a privileged hand could write to, or that tell what only root knows.
std::vector<std::string> made_up_files() {
  std::vector<std::string> found = {"/proc/sys/kernel/domainname", "/proc/self/mem", "/proc/self/oom_score_adj"};
  for (const char* path : {"/sys/kernel/mm/transparent_hugepage/defrag", "/sys/fs/cgroup/cpu/cgroup.procs",
                           "/sys/fs/cgroup/unified/cgroup.procs", "/sys/fs/cgroup/cgroup.procs",
                           "/sys/kernel/tracing/trace_marker", "/sys/kernel/debug/tracing/trace_marker"})
    if (::access(path, F_OK) == 0) found.push_back(path);
  return found;
}

pb::OpenFile& add(pb::Capsule& capsule, const std::string& path, uint32_t flags) {
  pb::OpenFile& file = *capsule.add_files();
  file.set_id(static_cast<uint32_t>(capsule.files_size()));
  file.set_flags(flags);
  file.mutable_identity()->set_path(path);
  return file;
}

std::string refused(const pb::Capsule& capsule) {
  try {
    FileRestore restore(capsule, options());
    restore.create();
    restore.apply_side_effects();
    return "it was restored";
  } catch (const Error& error) {
    return error.what();
  }
}

class HostilePaths : public testing::Test {
 protected:
  // The path itself, a link to it, and one of a directory on the way.
  std::vector<std::string> ways_to(const std::string& path) {
    const std::string link = dir_ / ("link" + std::to_string(++links_));
    const std::string on_the_way = dir_ / ("way" + std::to_string(links_));
    EXPECT_EQ(::symlink(path.c_str(), link.c_str()), 0);
    EXPECT_EQ(::symlink(directory_of(path).c_str(), on_the_way.c_str()), 0);
    return {path, link, on_the_way + "/" + last_name_of(path), "/../." + path};
  }

  TempDir dir_{"/tmp"};
  int links_ = 0;
};

TEST_F(HostilePaths, RegularFiles) {
  for (const std::string& target : made_up_files()) {
    for (const std::string& path : ways_to(target)) {
      for (const uint32_t flags : {O_RDWR, O_WRONLY, O_WRONLY | O_APPEND}) {
        pb::Capsule capsule;
        add(capsule, path, flags).mutable_regular();
        EXPECT_THAT(refused(capsule), HasSubstr(kRefused)) << path;
      }
    }
  }
  // Read only, what is about no process is looked at again.
  for (const std::string& path : ways_to("/proc/self/environ")) {
    pb::Capsule capsule;
    add(capsule, path, O_RDONLY).mutable_regular();
    EXPECT_THAT(refused(capsule), HasSubstr(kRefused)) << path;
  }
  for (const std::string& path : ways_to("/proc/meminfo")) {
    pb::Capsule capsule;
    add(capsule, path, O_RDONLY).mutable_regular();
    EXPECT_EQ(refused(capsule), "it was restored") << path;
  }
  for (const char* magic : {"/proc/self/cwd/x", "/proc/self/root/etc/passwd"}) {
    pb::Capsule capsule;
    add(capsule, magic, O_RDONLY).mutable_regular();
    EXPECT_THAT(refused(capsule), HasSubstr("symbolic links")) << magic;  // ELOOP
  }
}

TEST_F(HostilePaths, WhatIsInTheWayOfAFile) {
  ASSERT_EQ(::mkfifo((dir_ / "fifo").c_str(), 0600), 0);
  ASSERT_EQ(::symlink((dir_ / "fifo").c_str(), (dir_ / "link").c_str()), 0);
  std::vector<std::string> others = {dir_ / "fifo", dir_ / "link", "/dev/null", dir_.path()};
  if (::mknod((dir_ / "device").c_str(), S_IFCHR | 0600, ::makedev(1, 3)) == 0) others.push_back(dir_ / "device");
  for (const std::string& path : others) {
    pb::Capsule capsule;
    add(capsule, path, O_RDWR).mutable_regular();
    EXPECT_THAT(refused(capsule), HasSubstr("is")) << path;
    const RestoredFiles files({}, root_fd());
    if (path == dir_.path()) continue;
    EXPECT_FALSE(files.open(path, O_RDWR)) << path;
    EXPECT_EQ(errno, ENOTSUP) << path;
    EXPECT_FALSE(files.open(path, O_RDONLY)) << path;
  }
}

TEST_F(HostilePaths, FilesThatAreMadeAgain) {
  for (const std::string& directory : made_up_directories()) {
    for (const std::string& path : ways_to(directory + "/icp-test-none/file")) {
      pb::Capsule capsule;
      pb::RegularFile& file = *add(capsule, path, O_RDWR).mutable_regular();
      file.set_has_content(true), file.set_content("x"), file.set_size(1);
      EXPECT_THAT(refused(capsule), AnyOf(HasSubstr("cannot make"), HasSubstr("cannot find"), HasSubstr(kRefused)));
    }
    EXPECT_NE(::access((directory + "/icp-test-none").c_str(), F_OK), 0) << directory;
  }
}

TEST_F(HostilePaths, DirectoriesPipesAndDevices) {
  for (const std::string& directory : made_up_directories()) {
    for (const std::string& path : ways_to(directory)) {
      struct statfs info {};
      ASSERT_EQ(::statfs(directory.c_str(), &info), 0);
      pb::Capsule capsule;
      add(capsule, path, O_RDONLY | O_DIRECTORY).mutable_directory();
      const bool view = known_file_system(info.f_type) == FileSystemKind::kViews && directory != "/proc/self";
      EXPECT_THAT(refused(capsule), HasSubstr(view ? "it was restored" : kRefused)) << path;
    }
  }
  for (const std::string& target : made_up_files()) {
    pb::Capsule capsule;
    pb::PipeEnd& pipe = *add(capsule, target, O_RDWR).mutable_pipe();
    pipe.set_capacity(65536), pipe.set_fifo_path(target);
    EXPECT_NE(refused(capsule), "it was restored") << target;
    capsule = {};
    add(capsule, target, O_RDWR).mutable_char_device();
    EXPECT_NE(refused(capsule), "it was restored") << target;
  }
}

TEST_F(HostilePaths, PathsAlone) {
  for (const std::string& target : made_up_files()) {
    if (target.starts_with("/proc/sys") || target.starts_with("/sys/kernel/mm")) continue;
    pb::Capsule capsule;
    pb::OpenFile& file = add(capsule, target, O_PATH);
    file.mutable_identity()->set_mode(S_IFREG);
    file.mutable_link();
    EXPECT_THAT(refused(capsule), HasSubstr(kRefused)) << target;
    capsule = {};
    pb::InotifyWatch& watch = *add(capsule, "", O_RDONLY).mutable_inotify()->add_watches();
    watch.set_wd(1), watch.set_mask(2), watch.set_path(target);
    EXPECT_THAT(refused(capsule), HasSubstr(kRefused)) << target;
  }
}

TEST_F(HostilePaths, UnixSockets) {
  for (const std::string& directory : made_up_directories()) {
    for (const std::string& path : ways_to(directory + "/icp-test-none/socket")) {
      if (path.size() >= sizeof sockaddr_un::sun_path) continue;
      pb::Capsule capsule;
      pb::UnixSocket& socket = *add(capsule, "", O_RDWR).mutable_unix_socket();
      socket.set_type(SOCK_DGRAM), socket.set_ino(5), socket.set_name(path);
      EXPECT_NE(refused(capsule), "it was restored") << path;
    }
    EXPECT_NE(::access((directory + "/icp-test-none").c_str(), F_OK), 0) << directory;
  }
}

TEST_F(HostilePaths, FilesOfMemory) {
  RestoredFiles files({}, root_fd());
  const UniqueFd own(::open(dir_.write("own", "x").c_str(), O_RDWR | O_CLOEXEC));
  for (const std::string& target : made_up_files()) {
    for (const std::string& path : ways_to(target)) {
      for (const int flags : {O_RDWR, O_RDONLY, O_PATH}) EXPECT_FALSE(files.open(path, flags)) << path;
      pb::FileIdentity identity;
      identity.set_path(path);
      EXPECT_THROW(files.mapped_file(identity), Error) << path;
    }
  }
  for (const std::string& directory : made_up_directories()) {
    for (const std::string& path : ways_to(directory)) {
      const std::string name = path + "/icp-test-none";
      EXPECT_FALSE(files.open(name, O_RDWR | O_CREAT, 0600)) << path;
      EXPECT_FALSE(files.open(path, O_RDWR | O_TMPFILE, 0600)) << path;
      EXPECT_NE(files.make_directory(name), 0) << path;
      EXPECT_NE(files.link(own.get(), name), 0) << path;
      EXPECT_NE(files.rename(dir_ / "own", name), 0) << path;
      EXPECT_NE(files.unlink(name), 0) << path;
      struct stat status {};
      EXPECT_TRUE(files.names(path, status).empty()) << path;
    }
    EXPECT_NE(::access((directory + "/icp-test-none").c_str(), F_OK), 0) << directory;
  }
  // What is made never takes the place of a link.
  ASSERT_EQ(::symlink((dir_ / "elsewhere").c_str(), (dir_ / "dangling").c_str()), 0);
  EXPECT_FALSE(files.open(dir_ / "dangling", O_RDWR | O_CREAT, 0600));
  EXPECT_NE(::access((dir_ / "elsewhere").c_str(), F_OK), 0);
  EXPECT_TRUE(files.open(dir_ / "new", O_RDWR | O_CREAT, 0600));
  EXPECT_TRUE(files.open(dir_.path(), O_RDWR | O_TMPFILE, 0600));
  EXPECT_TRUE(files.open(dir_ / "own", O_RDWR));
}

// A link that changes all the time between a file and a sysctl.
TEST_F(HostilePaths, Swaps) {
  const std::string name = dir_ / "file", file = dir_.write("real", "x"), next = dir_ / "next";
  ASSERT_EQ(::symlink(file.c_str(), name.c_str()), 0);
  std::atomic<bool> stop = false;
  std::thread swapper([&] {
    for (int i = 0; !stop; i++) {
      ::unlink(next.c_str());
      if (::symlink(i % 2 == 0 ? "/proc/sys/kernel/domainname" : file.c_str(), next.c_str()) == 0)
        ::rename(next.c_str(), name.c_str());
    }
  });
  const RestoredFiles files({}, root_fd());
  int opened = 0, kept_out = 0;
  for (int i = 0; i < 20000 && (i < 2000 || opened < 10 || kept_out < 10); i++) {
    const UniqueFd fd = files.open(name, O_RDWR);
    struct statfs info {};
    if (!fd) {
      kept_out++;
      continue;
    }
    opened++;
    ASSERT_EQ(::fstatfs(fd.get(), &info), 0);
    ASSERT_EQ(known_file_system(info.f_type), FileSystemKind::kFiles);
  }
  stop = true;
  swapper.join();
  EXPECT_GT(opened, 0);
  EXPECT_GT(kept_out, 0);
}

TEST_F(HostilePaths, OtherUsersFiles) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, whose files are in question";
  ASSERT_EQ(::chmod(dir_.path().c_str(), 0755), 0);
  const std::string path = dir_.write("roots", "secret");
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  FileRestoreOptions as_user = options();
  as_user.identity = {65534, 65534, {}};
  const RestoredFiles files(as_user.identity, root_fd());
  for (const int flags : {O_RDONLY, O_WRONLY, O_RDWR}) {
    pb::Capsule capsule;
    add(capsule, path, static_cast<uint32_t>(flags)).mutable_regular()->set_size(6);
    EXPECT_THROW(FileRestore(capsule, as_user).create(), Error);
    EXPECT_FALSE(files.open(path, flags));
  }
  EXPECT_FALSE(files.open(dir_ / "new", O_RDWR | O_CREAT, 0600));
  EXPECT_NE(files.make_directory(dir_ / "directory"), 0);
  EXPECT_NE(files.unlink(path), 0);
  EXPECT_NE(files.rename(path, dir_ / "other"), 0);
  EXPECT_EQ(content(path), "secret");
}

}  // namespace
}  // namespace icp::test

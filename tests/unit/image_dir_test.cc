// SPDX-License-Identifier: GPL-2.0-or-later
// Directories of versions: numbers, commits, several nodes, owners and modes.
#include "engine/image/image_dir.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include "engine/image/image_layout.h"
#include "tests/unit/image_test_support.h"

namespace icp {
namespace {

using test::own_identity;

constexpr uid_t kSomebody = 54321;

ErrorKind kind_of(const std::function<void()>& what) {
  try {
    what();
  } catch (const Error& error) {
    return error.kind();
  }
  ADD_FAILURE() << "nothing was refused";
  return ErrorKind::kUsage;
}

void commit_one(ImageDir& image, uint32_t number = 0) {
  VersionWriter version = image.begin_version(number);
  version.write_sealed("state.icp", pb::Capsule().SerializeAsString());
  version.commit({});
}

mode_t mode_of(const std::string& path) {
  struct stat info {};
  EXPECT_EQ(::lstat(path.c_str(), &info), 0) << path;
  return info.st_mode & 07777;
}

TEST(ImageLayout, NamesOfVersionsAreExact) {
  EXPECT_EQ(version_dir_name(7), "v000007");
  EXPECT_EQ(parse_version_dir_name("v000007"), 7u);
  EXPECT_EQ(parse_version_dir_name("v1234567"), 1234567u);
  for (const char* name : {"v7", "v0000007", "v000000", "v99999999", "000007", "v00000x", "v-00007", "v000007 ", ""}) {
    EXPECT_FALSE(parse_version_dir_name(name)) << name;
  }
  EXPECT_TRUE(is_temporary_dir_name(".v000007.node1.tmp", "node1"));
  EXPECT_FALSE(is_temporary_dir_name(".v000007.node1.tmp", "node11"));
  EXPECT_FALSE(is_temporary_dir_name(".v000007.a.node1.tmp", "node1"));
  EXPECT_TRUE(is_temporary_dir_name(".v000007.a.node1.tmp", "a.node1"));
  EXPECT_EQ(store_of_index_file("task_mm_4.7.idx", 7), "task_mm_4");
  EXPECT_FALSE(store_of_index_file("task_mm_4.7.idx", 8));
  for (const char* name : {"", ".", "..", ".x", "a/b", "a b", "a\n"}) EXPECT_FALSE(is_safe_name(name)) << name;
}

TEST(ImageDir, CreatesTheLastTwoComponentsOnly) {
  test::TempDir temp;
  ImageDir::create(temp / "checkpoints/1.0", own_identity(), "n0");
  EXPECT_EQ(mode_of(temp / "checkpoints"), 0700u);
  EXPECT_EQ(mode_of(temp / "checkpoints/1.0"), 0700u);
  EXPECT_EQ(kind_of([&] { ImageDir::create(temp / "a/b/c", own_identity(), "n0"); }), ErrorKind::kImage);
  EXPECT_EQ(kind_of([&] { ImageDir::create(temp / "x", own_identity(), "../n0"); }), ErrorKind::kUsage);
  EXPECT_EQ(kind_of([&] { ImageDir::open(temp / "missing", own_identity()); }), ErrorKind::kImage);
  ImageDir::create(temp / "slashes//", own_identity(), "n0");
  EXPECT_EQ(mode_of(temp / "slashes"), 0700u);
}

TEST(ImageDir, ModesDoNotDependOnTheUmask) {
  for (const mode_t mask : {0, 022, 0777}) {
    test::TempDir temp;
    const mode_t old = ::umask(mask);
    ImageDir image = ImageDir::create(temp / "c/1.0", own_identity(), "n0");
    commit_one(image);
    ::umask(old);
    for (const char* dir : {"c", "c/1.0", "c/1.0/v000001", "c/1.0/v000001/n0"}) EXPECT_EQ(mode_of(temp / dir), 0700u);
    for (const char* file : {"manifest.icp", "state.icp"}) {
      EXPECT_EQ(mode_of(temp / "c/1.0/v000001/n0/" + file), 0600u);
    }
  }
}

TEST(ImageDir, CountsVersions) {
  test::TempDir temp;
  ImageDir image = ImageDir::create(temp / "1.0", own_identity(), "n0");
  EXPECT_FALSE(image.latest());
  EXPECT_TRUE(image.versions().empty());
  for (int i = 0; i < 3; ++i) commit_one(image);
  EXPECT_EQ(image.latest(), 3u);
  ASSERT_EQ(image.versions().size(), 3u);
  EXPECT_EQ(image.versions()[2].manifest.version(), 3u);
  EXPECT_EQ(image.versions()[2].manifest.needs_size(), 1);
  EXPECT_GT(image.versions()[2].manifest.stats().bytes_written(), 0u);
  commit_one(image, 1000000);
  EXPECT_EQ(image.latest(), 1000000u);
  EXPECT_EQ(kind_of([&] { image.begin_version(1000000); }), ErrorKind::kUsage);
  EXPECT_EQ(kind_of([&] { image.begin_version(5); }), ErrorKind::kUsage);
  EXPECT_EQ(kind_of([&] { image.begin_version(1u << 24); }), ErrorKind::kUsage);
  EXPECT_EQ(kind_of([&] { image.open_version(2000000); }), ErrorKind::kImage);
  EXPECT_EQ(kind_of([&] { image.open_version(0); }), ErrorKind::kUsage);
}

TEST(ImageDir, NodesShareTheNumbers) {
  test::TempDir temp;
  ImageDir one = ImageDir::create(temp / "1.0", own_identity(), "n1");
  ImageDir two = ImageDir::create(temp / "1.0", own_identity(), "n2");
  commit_one(one, 4);
  commit_one(two, 4);
  EXPECT_EQ(one.latest(), 4u);
  EXPECT_EQ(two.latest(), 4u);
  commit_one(one);
  EXPECT_EQ(two.latest(), 4u);
  EXPECT_EQ(two.begin_version().version(), 6u);
  EXPECT_EQ(kind_of([&] { ImageDir::open(temp / "1.0", own_identity()); }), ErrorKind::kUsage);
  EXPECT_EQ(ImageDir::open(temp / "1.0", own_identity(), "n2").latest(), 4u);
}

TEST(ImageDir, TheOnlyNodeNeedsNoName) {
  test::TempDir temp;
  ImageDir image = ImageDir::create(temp / "1.0", own_identity(), "n1");
  EXPECT_EQ(kind_of([&] { ImageDir::open(temp / "1.0", own_identity()); }), ErrorKind::kImage);
  commit_one(image);
  EXPECT_EQ(ImageDir::open(temp / "1.0", own_identity()).node(), "n1");
}

TEST(ImageDir, LeftoversAreRemovedAndNotShown) {
  test::TempDir temp;
  ImageDir image = ImageDir::create(temp / "1.0", own_identity(), "n0");
  commit_one(image);
  const pid_t child = ::fork();
  if (child == 0) {  // dies while it writes
    auto* version = new VersionWriter(image.begin_version());
    version->write_sealed("state.icp", "half");
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  ASSERT_TRUE(std::filesystem::exists(temp / "1.0/.v000002.n0.tmp/state.icp"));
  EXPECT_EQ(image.versions().size(), 1u);
  EXPECT_EQ(image.latest(), 1u);
  commit_one(image);
  EXPECT_FALSE(std::filesystem::exists(temp / "1.0/.v000002.n0.tmp"));
  EXPECT_EQ(image.latest(), 2u);
}

TEST(ImageDir, TwoWritersDoNotMix) {
  test::TempDir temp;
  ImageDir image = ImageDir::create(temp / "1.0", own_identity(), "n0");
  ImageDir again = ImageDir::open(temp / "1.0", own_identity(), "n0");
  VersionWriter version = image.begin_version();
  EXPECT_EQ(kind_of([&] { again.begin_version(); }), ErrorKind::kBusy);
  version.commit({});
  EXPECT_EQ(again.begin_version().version(), 2u);
}

TEST(ImageDir, AnUncommittedVersionLeavesNothing) {
  test::TempDir temp;
  ImageDir image = ImageDir::create(temp / "1.0", own_identity(), "n0");
  {
    VersionWriter version = image.begin_version();
    version.write_sealed("state.icp", "x");
    EXPECT_THROW(version.create_file("../x"), Error);
    EXPECT_THROW(version.create_file("state.icp"), Error);
    EXPECT_THROW(version.add_need(7), Error);
    VersionWriter moved = std::move(version);
  }
  EXPECT_EQ(test::entries_but_locks(temp / "1.0"), 0);
}

TEST(ImageDir, ADamagedVersionIsListedWithTheReasonAndItsNumberNotUsedAgain) {
  test::TempDir temp;
  ImageDir image = ImageDir::create(temp / "1.0", own_identity(), "n0");
  commit_one(image);
  commit_one(image);
  std::filesystem::resize_file(temp / "1.0/v000002/n0/manifest.icp", 10);
  ASSERT_EQ(image.versions().size(), 2u);
  EXPECT_TRUE(image.versions()[0].error.empty());
  EXPECT_NE(image.versions()[1].error.find("v000002/n0/manifest.icp"), std::string::npos);
  EXPECT_EQ(image.latest(), 2u);
  EXPECT_EQ(image.begin_version().version(), 3u);
}

TEST(ImageDirPermissions, RefusesADirectoryOthersMayWriteTo) {
  test::TempDir temp;
  ImageDir image = ImageDir::create(temp / "1.0", own_identity(), "n0");
  commit_one(image);
  for (const char* name : {"1.0", "1.0/v000001", "1.0/v000001/n0"}) {
    for (const mode_t mode : {0720, 0702, 01777}) {
      ::chmod((temp / name).c_str(), mode);
      EXPECT_EQ(kind_of([&] { ImageDir::open(temp / "1.0", own_identity()).open_version(1); }), ErrorKind::kPermission)
          << name;
      ::chmod((temp / name).c_str(), 0755);
      EXPECT_NO_THROW(ImageDir::open(temp / "1.0", own_identity()).open_version(1));
    }
  }
  ::chmod(temp.path().c_str(), 01777);  // a sticky parent, as /tmp is, does no harm
  EXPECT_NO_THROW(ImageDir::create(temp / "1.0", own_identity(), "n0"));
}

TEST(ImageDirPermissions, FollowsAnOwnLinkOnly) {
  test::TempDir temp;
  ImageDir::create(temp / "real", own_identity(), "n0");
  std::filesystem::create_symlink("real", temp / "link");
  EXPECT_NO_THROW(ImageDir::create(temp / "link", own_identity(), "n0"));
  if (::geteuid() != 0) GTEST_SKIP() << "only root can make a link of somebody else";
  ASSERT_EQ(::lchown((temp / "link").c_str(), kSomebody, kSomebody), 0);
  EXPECT_EQ(kind_of([&] { ImageDir::create(temp / "link", own_identity(), "n0"); }), ErrorKind::kPermission);
}

TEST(ImageDirPermissions, RefusesAForeignOwner) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give files away";
  test::TempDir temp;
  const Identity somebody{kSomebody, kSomebody, {}};
  const Identity other{kSomebody + 1, kSomebody + 1, {}};
  ::chmod(temp.path().c_str(), 01777);
  ImageDir image = ImageDir::create(temp / "c/1.0", somebody, "n0");
  commit_one(image);
  for (const char* name : {"c", "c/1.0", "c/1.0/v000001/n0", "c/1.0/v000001/n0/state.icp"}) {
    struct stat info {};
    ASSERT_EQ(::lstat((temp / name).c_str(), &info), 0);
    EXPECT_EQ(info.st_uid, kSomebody) << name;
    EXPECT_EQ(info.st_gid, kSomebody) << name;
  }
  EXPECT_EQ(::geteuid(), 0u);
  // Readable for everybody, and still not the other user's.
  ::chmod((temp / "c").c_str(), 0755);
  ::chmod((temp / "c/1.0").c_str(), 0755);
  EXPECT_EQ(kind_of([&] { ImageDir::open(temp / "c/1.0", other, "n0"); }), ErrorKind::kPermission);
  EXPECT_EQ(kind_of([&] { ImageDir::open(temp / "c/1.0", own_identity(), "n0"); }), ErrorKind::kPermission);
  ::chmod((temp / "c").c_str(), 0700);
  EXPECT_EQ(kind_of([&] { ImageDir::open(temp / "c/1.0", other, "n0"); }), ErrorKind::kSystem);
  // A directory of root is trusted, if its rights let the user in.
  ASSERT_EQ(::chown((temp / "c/1.0/v000001").c_str(), 0, 0), 0);
  ::chmod((temp / "c/1.0/v000001").c_str(), 0755);
  EXPECT_NO_THROW(image.open_version(1));
}

}  // namespace
}  // namespace icp

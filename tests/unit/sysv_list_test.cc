// SPDX-License-Identifier: GPL-2.0-or-later
#include <gmock/gmock.h>
#include <grp.h>
#include <sys/prctl.h>

#include <thread>

#include "engine/base/error.h"
#include "engine/sysv/ipc_identity.h"
#include "engine/sysv/ipc_list.h"
#include "engine/sysv/ipc_namespace.h"
#include "sysv_test_util.h"

namespace icp {
namespace {

using namespace icp::test;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::vector<int> ids_of(const std::vector<IpcObject>& objects) {
  std::vector<int> ids;
  for (const IpcObject& object : objects) ids.push_back(object.id);
  return ids;
}

TEST(SysvList, ParsesRowsAndLeavesOutBrokenOnes) {
  const char* text =
      "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      "
      "dtime "
      "     ctime                   rss                  swap\n"
      "-559038737          7  3600               4194304  4711  4712      2  1000  1001  1002  1003 1700000001         "
      " 0 "
      "1700000000                 4096                     0\n"
      "        12          5   640                  4096  x711  4712      2  1000  1001  1002  1003 1 0 1 4096 0\n"
      "        13          6   640                  40\n";
  const auto objects = parse_ipc_list(IpcKind::kShm, text);
  ASSERT_THAT(objects, SizeIs(1));
  const IpcObject& object = objects[0];
  EXPECT_EQ(object.key, static_cast<int32_t>(0xdeadbeef));
  EXPECT_EQ(object.mode, 0600U);
  EXPECT_TRUE(object.removed);
  EXPECT_TRUE(object.locked);
  EXPECT_EQ(object.creator, 4711);
  EXPECT_EQ(object.attached, 2U);
  EXPECT_EQ(object.cgid, 1003U);
  EXPECT_EQ(object.create_time, 1700000000);
  EXPECT_EQ(describe(object), "shm key 0xdeadbeef id 7 size 4194304 creator pid 4711");
}

TEST(SysvList, ShowsWhatThereIs) {
  run_in_namespace([] {
    EXPECT_THAT(list_ipc_objects(), IsEmpty());
    const int shm = make_segment(0x1234, 5000, 0640);
    const int sem = make_semaphores(0x77, {1, 2, 3});
    const int queue = make_queue(0x88);
    send(queue, 3, "hello");
    const auto objects = list_ipc_objects();
    ASSERT_THAT(objects, SizeIs(3));
    EXPECT_EQ(objects[0].id, shm);
    EXPECT_EQ(objects[0].size, 5000U);
    EXPECT_EQ(objects[0].mode, 0640U);
    EXPECT_EQ(objects[0].creator, ::getpid());
    EXPECT_EQ(objects[1].id, sem);
    EXPECT_EQ(objects[1].size, 3U);
    EXPECT_THAT(semaphore_users(objects[1]), ElementsAre(::getpid()));
    EXPECT_EQ(objects[2].id, queue);
    EXPECT_EQ(objects[2].size, 5U);
    EXPECT_EQ(objects[2].messages, 1U);
    EXPECT_EQ(objects[2].last, ::getpid());
    EXPECT_NEAR(static_cast<double>(objects[2].create_time), static_cast<double>(::time(nullptr)), 5);

    EXPECT_THAT(remove_ipc_objects(objects), SizeIs(3));
    EXPECT_THAT(remove_ipc_objects(objects), IsEmpty());
    EXPECT_THAT(list_ipc_objects(), IsEmpty());
  });
}

TEST(SysvList, ScopeIsOneThreadOnly) {
  run_in_namespace([] {
    make_segment(1, 100);
    const UniqueFd first = current_ipc_namespace();
    fresh_ipc_namespace();
    make_segment(2, 100);
    {
      const IpcNamespaceScope scope(first.get());
      EXPECT_EQ(list_ipc_objects().at(0).key, 1);
      EXPECT_EQ(ipc_namespace_inode(first.get()), ipc_namespace_inode(current_ipc_namespace().get()));
    }
    EXPECT_EQ(list_ipc_objects().at(0).key, 2);
    std::thread other([&] {
      const IpcNamespaceScope scope(first.get());
      EXPECT_EQ(list_ipc_objects().at(0).key, 1);
    });
    other.join();
    EXPECT_THROW(IpcNamespaceScope{-1}, Error);
  });
}

TEST(SysvList, LimitsAreCopied) {
  run_in_namespace([] {
    IpcLimits limits = IpcLimits::read();
    limits.msg_queue_bytes = 32768;
    limits.sem_ops = 64;
    limits.shm_max_bytes = 1U << 30;
    limits.apply();
    EXPECT_EQ(IpcLimits::read(), limits);
    fresh_ipc_namespace();
    EXPECT_NE(IpcLimits::read(), limits);
    limits.apply();
    EXPECT_EQ(IpcLimits::read(), limits);
  });
}

TEST(SysvList, SelectsByProvenance) {
  run_in_namespace([] {
    const int64_t now = ::time(nullptr);
    int mine = 0, theirs = 0, used = 0, foreign = 0, unused = 0;
    mine = make_segment(1, 100);
    unused = ::semget(9, 1, IPC_CREAT | 0600);
    run_child([] {
      make_segment(2, 100);
      const int queue = make_queue(3);
      send(queue, 1, "x");
      make_semaphores(4, {1});
    });
    run_child([] {
      become(1000);
      make_segment(5, 100);
    });
    theirs = ::shmget(2, 0, 0);
    foreign = ::shmget(5, 0, 0);
    used = ::msgget(3, 0);
    SysvScope scope;
    scope.pids = {::getpid()};
    scope.since = now - 1;
    EXPECT_THAT(ids_of(select_objects(scope)), ElementsAre(mine, unused));
    scope.attached_ids = {foreign};
    EXPECT_THAT(ids_of(select_objects(scope)), ElementsAre(mine, foreign, unused));
    scope.since = now + 100;
    EXPECT_THAT(ids_of(select_objects(scope)), ElementsAre(foreign));
    scope.whole_namespace = true;
    EXPECT_THAT(select_objects(scope), SizeIs(6));
    EXPECT_NE(theirs, mine);
    EXPECT_GE(used, 0);
  });
}

TEST(SysvIdentity, ObjectsBelongToTheUserAndTheAgentStaysRoot) {
  run_in_namespace([] {
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    {
      const IpcIdentity identity(1000, 1001);
      EXPECT_EQ(::geteuid(), 1000U);
      make_segment(1, 100);
      EXPECT_THROW(IpcIdentity(1002, 1002), Error);
    }
    EXPECT_EQ(::geteuid(), 0U);
    EXPECT_EQ(::getegid(), 0U);
    int signal = 0;
    ::prctl(PR_GET_PDEATHSIG, &signal);
    EXPECT_EQ(signal, SIGTERM);
    EXPECT_EQ(::setgroups(0, nullptr), 0) << "capabilities are back";
    const IpcObject object = list_ipc_objects().at(0);
    EXPECT_EQ(object.cuid, 1000U);
    EXPECT_EQ(object.uid, 1000U);
    EXPECT_EQ(object.cgid, 1001U);
  });
}

}  // namespace
}  // namespace icp

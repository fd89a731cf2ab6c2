// SPDX-License-Identifier: GPL-2.0-or-later
#include <gmock/gmock.h>

#include "engine/base/error.h"
#include "engine/sysv/message_queue.h"
#include "engine/sysv/sysv_ipc.h"
#include "sysv_test_util.h"

namespace icp {
namespace {

using namespace icp::test;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

pb::Capsule capture_all() {
  SysvScope scope;
  scope.whole_namespace = true;
  pb::Capsule capsule;
  capture_sysv(select_objects(scope), *capsule.mutable_sysv());
  return capsule;
}

TEST(SysvRestore, SameKeysIdsValuesAndMessages) {
  run_in_namespace([] {
    // Ids that a fresh namespace would not give by itself.
    for (int i = 0; i < 5; ++i) ::shmctl(make_segment(100 + i, 10), IPC_RMID, nullptr);
    for (int i = 0; i < 3; ++i) ::semctl(make_semaphores(100 + i, {1}), 0, IPC_RMID);
    const int queue0 = make_queue(50);
    const int shm0 = make_segment(0x1234, 5000, 0640);
    const int shm1 = make_segment(IPC_PRIVATE, 1 << 20);
    const int sem0 = make_semaphores(-5, {0, 7, 32767}, 0400);
    const int queue1 = make_queue(IPC_PRIVATE, 0622);
    ::msgctl(queue0, IPC_RMID, nullptr);
    send(queue1, 9, "first");
    send(queue1, 2, "");
    send(queue1, 9, std::string(8000, 'z'));
    const pb::Capsule capsule = capture_all();
    EXPECT_EQ(receive(queue1, 2), "2:") << "capture takes no message";

    fresh_ipc_namespace();
    const RestoredSysv restored = restore_sysv(capsule, 1000, 1001);
    EXPECT_THAT(restored.changed_ids(), IsEmpty());
    EXPECT_EQ(restored.shm_id(shm0), shm0);
    EXPECT_EQ(restored.sem_id(sem0), sem0);
    EXPECT_THROW(restored.shm_id(4711), Error);
    EXPECT_EQ(::shmget(0x1234, 0, 0), shm0);
    EXPECT_EQ(::semget(-5, 0, 0), sem0);
    EXPECT_THAT(semaphore_values(sem0, 3), ElementsAre(0, 7, 32767));
    EXPECT_EQ(receive(queue1), "9:first");
    EXPECT_EQ(receive(queue1), "2:");
    EXPECT_EQ(receive(queue1), "9:" + std::string(8000, 'z'));
    for (const IpcObject& object : list_ipc_objects()) {
      EXPECT_EQ(object.uid, 1000U) << describe(object);
      EXPECT_EQ(object.cuid, 1000U) << describe(object);
      EXPECT_EQ(object.gid, 1001U) << describe(object);
      const bool small = object.kind == IpcKind::kShm && object.id == shm0;
      EXPECT_TRUE(!small || (object.mode == 0640U && object.size == 5000U)) << describe(object);
      EXPECT_TRUE(object.kind != IpcKind::kMsg || object.mode == 0622U) << describe(object);
    }
    // The user can work with them.
    run_child([&] {
      become(1000);
      const AttachedSegment segment(shm1, true);
      segment.bytes()[5] = std::byte{1};
    });
  });
}

TEST(SysvRestore, RemovedButAttachedSegment) {
  run_in_namespace([] {
    const int id = make_segment(0x42, 4096);
    const AttachedSegment held(id, true);
    need(::shmctl(id, IPC_RMID, nullptr) == 0, "IPC_RMID");
    const pb::Capsule capsule = capture_all();
    ASSERT_EQ(capsule.sysv().segments_size(), 1);
    EXPECT_TRUE(capsule.sysv().segments(0).removed());
    EXPECT_EQ(capsule.sysv().segments(0).perm().key(), 0);

    fresh_ipc_namespace();
    const RestoredSysv restored = restore_sysv(capsule, 1000, 1000);
    EXPECT_EQ(restored.shm_id(id), id);
    {
      const AttachedSegment again(restored.shm_id(id), true);
      again.bytes()[4095] = std::byte{1};
      finish_sysv(capsule, restored);
      const auto objects = list_ipc_objects();
      ASSERT_THAT(objects, SizeIs(1));
      EXPECT_TRUE(objects[0].removed);
      const AttachedSegment late(restored.shm_id(id), false);
      EXPECT_EQ(late.bytes()[4095], std::byte{1});
    }
    EXPECT_THAT(list_ipc_objects(), IsEmpty()) << "gone with the last detach";
    finish_sysv(capsule, restored);
  });
}

TEST(SysvRestore, IdsThatAreTakenAreReported) {
  run_in_namespace([] {
    const int id = make_segment(1, 100);
    const pb::Capsule capsule = capture_all();
    fresh_ipc_namespace();
    make_segment(2, 100);  // has the place, and in a fresh namespace the id
    const RestoredSysv restored = restore_sysv(capsule, 0, 0);
    EXPECT_NE(restored.shm_id(id), id);
    EXPECT_THAT(restored.changed_ids(), SizeIs(1));
    EXPECT_EQ(::shmget(1, 0, 0), restored.shm_id(id));
  });
}

TEST(SysvRestore, LeavesNothingWhenOneObjectFails) {
  run_in_namespace([] {
    make_segment(1, 100);
    make_semaphores(2, {1});
    make_queue(3);
    const pb::Capsule capsule = capture_all();
    fresh_ipc_namespace();
    make_queue(3);
    EXPECT_THROW(restore_sysv(capsule, 0, 0), Error);
    EXPECT_THAT(list_ipc_objects(), SizeIs(1));
  });
}

TEST(SysvRestore, QueueLimits) {
  run_in_namespace([] {
    const int id = make_queue(1);
    for (int i = 0; i < 10; ++i) send(id, 1, std::string(1000, 'a'));
    msqid_ds info{};
    need(::msgctl(id, IPC_STAT, &info) == 0, "IPC_STAT");
    info.msg_qbytes = 500;  // less than what is in it
    need(::msgctl(id, IPC_SET, &info) == 0, "IPC_SET");
    const pb::Capsule capsule = capture_all();
    fresh_ipc_namespace();
    restore_sysv(capsule, 1000, 1000);
    need(::msgctl(id, IPC_STAT, &info) == 0, "IPC_STAT");
    EXPECT_EQ(info.msg_qbytes, 500U);
    EXPECT_EQ(info.msg_qnum, 10U);
    EXPECT_TRUE(can_copy_messages());
    Findings findings;
    check_sysv(list_ipc_objects(), findings);
    EXPECT_THAT(findings, IsEmpty());
  });
}

TEST(SysvRestore, LockedSegmentAndGoneObjects) {
  run_in_namespace([] {
    const int id = make_segment(1, 4096);
    need(::shmctl(id, SHM_LOCK, nullptr) == 0, "SHM_LOCK");
    make_semaphores(2, {1});
    make_queue(3);
    auto objects = list_ipc_objects();
    pb::SysvIpc state;
    capture_sysv(objects, state);
    EXPECT_TRUE(state.segments(0).locked());
    remove_ipc_objects(objects);
    pb::SysvIpc none;
    capture_sysv(objects, none);
    EXPECT_EQ(none.segments_size() + none.semaphores_size() + none.queues_size(), 0);
    fresh_ipc_namespace();
    pb::Capsule capsule;
    *capsule.mutable_sysv() = state;
    restore_sysv(capsule, 0, 0);
    EXPECT_TRUE(list_ipc_objects().at(0).locked);
  });
}

// What an image may say, one wrong thing each; nothing may be made.
class HostileSysv : public ::testing::Test {
 protected:
  HostileSysv() {
    pb::ShmSegment& segment = *capsule_.mutable_sysv()->add_segments();
    set_perm(*segment.mutable_perm(), 1, 0);
    segment.set_size(4096);
    segment_ = &segment;
    set_ = capsule_.mutable_sysv()->add_semaphores();
    set_perm(*set_->mutable_perm(), 2, 0);
    set_->add_values(1);
    queue_ = capsule_.mutable_sysv()->add_queues();
    set_perm(*queue_->mutable_perm(), 3, 0);
    queue_->set_max_bytes(16384);
    message_ = queue_->add_messages();
    message_->set_type(1);
    message_->set_text("x");
    capsule_.add_processes()->set_pid(7);
  }

  static void set_perm(pb::IpcPerm& perm, int key, int id) {
    perm.set_key(key);
    perm.set_id(id);
    perm.set_mode(0600);
  }
  pb::SemUndo& add_undo(int semid, uint32_t index, int adjust) {
    pb::SemUndo& undo = *capsule_.mutable_processes(0)->add_sem_undo();
    undo.set_semid(semid);
    undo.set_index(index);
    undo.set_adjust(adjust);
    return undo;
  }

  void expect_refused() {
    run_in_namespace([&] {
      try {
        restore_sysv(capsule_, 1000, 1000);
        ADD_FAILURE() << "restored";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kImage) << error.what();
      }
      EXPECT_THAT(list_ipc_objects(), IsEmpty());
    });
  }

  pb::Capsule capsule_;
  pb::ShmSegment* segment_;
  pb::SemaphoreSet* set_;
  pb::MessageQueue* queue_;
  pb::IpcMessage* message_;
};

TEST_F(HostileSysv, TheBaseItselfIsFine) {
  add_undo(0, 0, -32768);
  run_in_namespace([&] { EXPECT_EQ(restore_sysv(capsule_, 1000, 1000).shm_ids.size(), 1U); });
}
TEST_F(HostileSysv, SegmentOfNoBytes) {
  segment_->set_size(0);
  expect_refused();
}
TEST_F(HostileSysv, SegmentOfAllBytes) {
  segment_->set_size(UINT64_MAX);
  expect_refused();
}
TEST_F(HostileSysv, SegmentLargerThanMemory) {
  segment_->set_size(1ULL << 50);
  expect_refused();
}
TEST_F(HostileSysv, SegmentsLargerThanMemoryTogether) {
  for (int i = 1; i < 4000; ++i) {
    pb::ShmSegment& segment = *capsule_.mutable_sysv()->add_segments();
    set_perm(*segment.mutable_perm(), 0, i);
    segment.set_size(1ULL << 33);
  }
  expect_refused();
}
TEST_F(HostileSysv, TooManySegments) {
  for (int i = 1; i < 5000; ++i) {
    pb::ShmSegment& segment = *capsule_.mutable_sysv()->add_segments();
    set_perm(*segment.mutable_perm(), 0, i);
    segment.set_size(1);
  }
  expect_refused();
}
TEST_F(HostileSysv, NegativeId) {
  segment_->mutable_perm()->set_id(-1);
  expect_refused();
}
TEST_F(HostileSysv, ModeWithMoreThanPermissions) {
  set_->mutable_perm()->set_mode(06000);
  expect_refused();
}
TEST_F(HostileSysv, SameKeyTwice) {
  *capsule_.mutable_sysv()->add_queues() = *queue_;
  capsule_.mutable_sysv()->mutable_queues(1)->mutable_perm()->set_id(9);
  expect_refused();
}
TEST_F(HostileSysv, SameIdTwice) {
  *capsule_.mutable_sysv()->add_semaphores() = *set_;
  capsule_.mutable_sysv()->mutable_semaphores(1)->mutable_perm()->set_key(9);
  expect_refused();
}
TEST_F(HostileSysv, NoSemaphores) {
  set_->clear_values();
  expect_refused();
}
TEST_F(HostileSysv, TooManySemaphores) {
  set_->mutable_values()->Resize(1'000'000, 0);
  expect_refused();
}
TEST_F(HostileSysv, SemaphoreValueTooHigh) {
  set_->set_values(0, 32768);
  expect_refused();
}
TEST_F(HostileSysv, MessageOfTypeZero) {
  message_->set_type(0);
  expect_refused();
}
TEST_F(HostileSysv, MessageTooLong) {
  message_->set_text(std::string(8193, 'x'));
  expect_refused();
}
TEST_F(HostileSysv, TooManyMessages) {
  for (int i = 0; i < 20000; ++i) {
    pb::IpcMessage& message = *queue_->add_messages();
    message.set_type(1);
  }
  expect_refused();
}
TEST_F(HostileSysv, QueueLargerThanAllowed) {
  queue_->set_max_bytes(1ULL << 40);
  expect_refused();
}
TEST_F(HostileSysv, UndoOfUnknownSet) {
  add_undo(77, 0, 1);
  expect_refused();
}
TEST_F(HostileSysv, UndoOfUnknownSemaphore) {
  add_undo(0, 1, 1);
  expect_refused();
}
TEST_F(HostileSysv, UndoTooLarge) {
  add_undo(0, 0, 32768);
  expect_refused();
}
TEST_F(HostileSysv, UndoTooSmall) {
  add_undo(0, 0, -32769);
  expect_refused();
}
TEST_F(HostileSysv, UndoTwice) {
  add_undo(0, 0, 1);
  add_undo(0, 0, 1);
  expect_refused();
}

}  // namespace
}  // namespace icp

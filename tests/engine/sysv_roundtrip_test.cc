// SPDX-License-Identifier: GPL-2.0-or-later
// System V IPC there and back: Kerrighed's rules, with the old ids as well.
#include <gtest/gtest.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

constexpr size_t kBytes = 1 << 20;

class SysvRoundtrip : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const char* lacking = test::lacking_rights(); lacking != nullptr) GTEST_SKIP() << lacking;
    key_ = 0x1c900000 + (::getpid() & 0xffff);
  }
  // What the test leaves in the host's namespace: the killed process could not remove it.
  void TearDown() override {
    if (const int shm = ::shmget(key_, 0, 0); shm >= 0) ::shmctl(shm, IPC_RMID, nullptr);
    if (const int shm = ::shmget(key_ + 1, 0, 0); shm >= 0) ::shmctl(shm, IPC_RMID, nullptr);
    if (const int sem = ::semget(key_, 0, 0); sem >= 0) ::semctl(sem, 0, IPC_RMID);
    if (const int msg = ::msgget(key_, 0); msg >= 0) ::msgctl(msg, IPC_RMID, nullptr);
  }
  key_t key_ = 0;
};

TEST_F(SysvRoundtrip, SegmentKeyIdContentSharedByParentAndChild) {
  EXPECT_EQ(roundtrip(
                [key = key_](Gate& gate) {
                  const int id = ::shmget(key, kBytes, IPC_CREAT | IPC_EXCL | 0640);
                  CHECK_OR_DIE(id >= 0);
                  char* at = static_cast<char*>(::shmat(id, nullptr, 0));
                  CHECK_OR_DIE(at != reinterpret_cast<char*>(-1));
                  std::memset(at, 7, kBytes);
                  const pid_t child = ::fork();
                  if (child == 0) {
                    while (at[0] != 1) ::usleep(1000);
                    at[1] = 2;
                    ::_exit(0);
                  }
                  gate.ready_and_go();
                  CHECK_OR_DIE(::shmget(key, 0, 0) == id);
                  shmid_ds info;
                  CHECK_OR_DIE(::shmctl(id, IPC_STAT, &info) == 0);
                  CHECK_OR_DIE(info.shm_segsz == kBytes && (info.shm_perm.mode & 0777) == 0640 && info.shm_nattch == 2);
                  for (size_t i = 0; i < kBytes; ++i) CHECK_OR_DIE(at[i] == 7);
                  at[0] = 1;
                  CHECK_OR_DIE(::waitpid(child, nullptr, 0) == child && at[1] == 2);
                  return 0;
                },
                {.generations = 3, .versions = 3}),
            0);
}

TEST_F(SysvRoundtrip, DetachedAndRemovedSegments) {
  EXPECT_EQ(roundtrip(
                [key = key_](Gate& gate) {
                  const int detached = ::shmget(key + 1, kBytes, IPC_CREAT | 0600);
                  CHECK_OR_DIE(detached >= 0);
                  char* at = static_cast<char*>(::shmat(detached, nullptr, 0));
                  std::memset(at, 3, kBytes);
                  CHECK_OR_DIE(::shmdt(at) == 0);
                  const int removed = ::shmget(IPC_PRIVATE, kBytes, IPC_CREAT | 0600);
                  char* still = static_cast<char*>(::shmat(removed, nullptr, 0));
                  std::memset(still, 4, kBytes);
                  CHECK_OR_DIE(::shmctl(removed, IPC_RMID, nullptr) == 0);
                  gate.ready_and_go();
                  for (size_t i = 0; i < kBytes; ++i) CHECK_OR_DIE(still[i] == 4);
                  shmid_ds info;
                  CHECK_OR_DIE(::shmctl(removed, IPC_STAT, &info) == 0 && (info.shm_perm.mode & SHM_DEST) != 0);
                  CHECK_OR_DIE(::shmget(key + 1, 0, 0) == detached);
                  at = static_cast<char*>(::shmat(detached, nullptr, SHM_RDONLY));
                  CHECK_OR_DIE(at != reinterpret_cast<char*>(-1));
                  for (size_t i = 0; i < kBytes; ++i) CHECK_OR_DIE(at[i] == 3);
                  CHECK_OR_DIE(::shmdt(still) == 0);
                  CHECK_OR_DIE(::shmctl(removed, IPC_STAT, &info) != 0);  // the last detach removes it
                  CHECK_OR_DIE(::shmctl(detached, IPC_RMID, nullptr) == 0);
                  return 0;
                },
                {.generations = 2}),
            0);
}

TEST_F(SysvRoundtrip, SemaphoreValuesAndUndo) {
  EXPECT_EQ(roundtrip(
                [key = key_](Gate& gate) {
                  const int id = ::semget(key, 3, IPC_CREAT | 0600);
                  CHECK_OR_DIE(id >= 0);
                  CHECK_OR_DIE(::semctl(id, 0, SETVAL, 5) == 0 && ::semctl(id, 2, SETVAL, 9) == 0);
                  const pid_t child = ::fork();
                  if (child == 0) {
                    sembuf take{0, -2, SEM_UNDO};
                    CHECK_OR_DIE(::semop(id, &take, 1) == 0);
                    sembuf wait{1, -1, 0};
                    CHECK_OR_DIE(::semop(id, &wait, 1) == 0);  // interrupted by every stop
                    ::_exit(0);
                  }
                  while (::semctl(id, 0, GETVAL) != 3) ::usleep(1000);
                  gate.ready_and_go();
                  CHECK_OR_DIE(::semctl(id, 0, GETVAL) == 3 && ::semctl(id, 2, GETVAL) == 9);
                  sembuf release{1, 1, 0};
                  CHECK_OR_DIE(::semop(id, &release, 1) == 0);
                  int status = 0;
                  CHECK_OR_DIE(::waitpid(child, &status, 0) == child && status == 0);
                  CHECK_OR_DIE(::semctl(id, 0, GETVAL) == 5);  // undone at its end
                  CHECK_OR_DIE(::semctl(id, 0, IPC_RMID) == 0);
                  return 0;
                },
                {.generations = 2, .versions = 2}),
            0);
}

TEST_F(SysvRoundtrip, MessagesInOrder) {
  EXPECT_EQ(roundtrip(
                [key = key_](Gate& gate) {
                  struct {
                    long type;
                    char text[16];
                  } message;
                  const int id = ::msgget(key, IPC_CREAT | 0600);
                  CHECK_OR_DIE(id >= 0);
                  for (long i = 1; i <= 3; ++i) {
                    message.type = i;
                    std::memset(message.text, 'a' + static_cast<int>(i), sizeof message.text);
                    CHECK_OR_DIE(::msgsnd(id, &message, static_cast<size_t>(4 * i), 0) == 0);
                  }
                  gate.ready_and_go();
                  for (long i = 1; i <= 3; ++i) {
                    CHECK_OR_DIE(::msgrcv(id, &message, sizeof message.text, 0, IPC_NOWAIT) == 4 * i);
                    CHECK_OR_DIE(message.type == i && message.text[0] == 'a' + i);
                  }
                  CHECK_OR_DIE(::msgctl(id, IPC_RMID, nullptr) == 0);
                  return 0;
                },
                {.generations = 2}),
            0);
}

}  // namespace
}  // namespace icp::test

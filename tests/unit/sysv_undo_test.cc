// SPDX-License-Identifier: GPL-2.0-or-later
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <random>

#include "engine/base/error.h"
#include "engine/sysv/sem_undo.h"
#include "engine/sysv/semaphore.h"
#include "engine/sysv/sysv_ipc.h"
#include "sysv_test_util.h"

namespace icp {
namespace {

using namespace icp::test;
using ::testing::AnyOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

int64_t semop_here(int semid, std::span<const sembuf> operations) {
  std::vector<sembuf> copy(operations.begin(), operations.end());
  return ::semop(semid, copy.data(), copy.size()) == 0 ? 0 : -errno;
}

int64_t values_here(int semid, std::span<uint16_t> values) {
  return ::semctl(semid, 0, GETALL, values.data()) == 0 ? 0 : -errno;
}

std::vector<int> find_here(int semid, size_t count, size_t max_operations = 500) {
  return find_undo(semid, count, max_operations, semop_here, values_here);
}

TEST(SysvUndo, FindsEveryAdjustmentAndChangesNothing) {
  run_in_namespace([] {
    const std::vector<unsigned short> values = {0, 0, 1, 5, 32767, 32767, 16384, 100, 32767, 0};
    const std::vector<int> wanted = {0, -1, 1, -3, 32767, -32768, 16384, 0, 1, -32767};
    const int id = make_semaphores(1, values);
    for (size_t i = 0; i < values.size(); ++i) {
      auto operations = undo_operations(static_cast<unsigned>(i), values[i], wanted[i]);
      EXPECT_LE(operations.size(), 6U);
      if (!operations.empty()) {
        need(::semop(id, operations.data(), operations.size()) == 0, "semop");
      }
    }
    EXPECT_THAT(semaphore_values(id, values.size()), ElementsAreArray(values));
    semid_ds before{};
    need(::semctl(id, 0, IPC_STAT, &before) == 0, "IPC_STAT");
    for (const size_t limit : {500, 32, 8}) {
      EXPECT_THAT(find_here(id, values.size(), limit), ElementsAreArray(wanted)) << limit;
    }
    EXPECT_THAT(semaphore_values(id, values.size()), ElementsAreArray(values));
    semid_ds after{};
    need(::semctl(id, 0, IPC_STAT, &after) == 0, "IPC_STAT");
    EXPECT_EQ(before.sem_otime, after.sem_otime);
    // Another process has none, and asking leaves no trace of it (but for the time, which its end sets).
    run_child([&] { EXPECT_THAT(find_here(id, values.size()), Each(0)); });
    EXPECT_EQ(::semctl(id, 0, GETPID), ::getpid());
  });
}

// The same as the kernel's own: what it adds when the process ends.
TEST(SysvUndo, RandomHistories) {
  run_in_namespace([] {
    std::mt19937 random(4711);
    for (int round = 0; round < 60; ++round) {
      const size_t count = 1 + random() % 40;
      const int id = make_semaphores(IPC_PRIVATE, std::vector<unsigned short>(count, 1000));
      std::vector<int> expected(count, 0);
      run_child([&] {
        for (int step = 0; step < 60; ++step) {
          const auto index = static_cast<unsigned short>(random() % count);
          const int range = random() % 4 == 0 ? 12000 : 3;
          const auto change = static_cast<short>(static_cast<int>(random() % (2 * range + 1)) - range);
          const bool undo = random() % 2 == 0;
          if (change == 0) continue;
          const auto flags = static_cast<short>(IPC_NOWAIT | (undo ? SEM_UNDO : 0));
          if (operate(id, {{index, change, flags}}) == 0 && undo) expected[index] -= change;
        }
        const auto before = semaphore_values(id, count);
        const auto found = find_here(id, count);
        EXPECT_THAT(found, ElementsAreArray(expected));
        EXPECT_THAT(semaphore_values(id, count), ElementsAreArray(before));
        // Given to a new process, which ends at once.
        const int copy = make_semaphores(IPC_PRIVATE, before);
        run_child([&] {
          for (size_t i = 0; i < count; ++i) {
            auto operations = undo_operations(static_cast<unsigned>(i), before[i], found[i]);
            if (!operations.empty()) need(::semop(copy, operations.data(), operations.size()) == 0, "semop");
          }
          EXPECT_THAT(semaphore_values(copy, count), ElementsAreArray(before));
        });
        const auto after = semaphore_values(copy, count);
        for (size_t i = 0; i < count; ++i) EXPECT_EQ(after[i], std::clamp(before[i] + expected[i], 0, kSemaphoreMax));
      });
      ::semctl(id, 0, IPC_RMID);
    }
  });
}

TEST(SysvUndo, NeitherWakesWaitersNorDisturbsOthers) {
  run_in_namespace([] {
    const int id = make_semaphores(1, {0, 0});
    need(operate(id, {{1, 5, SEM_UNDO}}) == 0, "semop");
    const Bystander waiter([&] {
      // Would take whatever becomes visible.
      need(start_child([&] { operate(id, {{0, -1, 0}}); }) > 0, "fork");
    });
    while (::semctl(id, 0, GETNCNT) == 0) ::usleep(1000);
    {
      // A process outside the capsule that changes a value all the time: the answer may be that nothing can be said,
      // but no question ever becomes a change.
      const Bystander other([&] {
        need(start_child([&] {
               for (;;) {
                 operate(id, {{1, 1, 0}});
                 operate(id, {{1, -1, 0}});
               }
             }) > 0,
             "fork");
      });
      for (int i = 0; i < 1000; ++i) {
        try {
          find_here(id, 2);
        } catch (const Error& error) {
          EXPECT_EQ(error.kind(), ErrorKind::kBusy) << error.what();
        }
      }
    }
    EXPECT_THAT(semaphore_values(id, 2)[1], AnyOf(5, 6));
    EXPECT_THAT(find_here(id, 2), ElementsAre(0, -5));
    EXPECT_EQ(::semctl(id, 0, GETNCNT), 1) << "still waiting";
  });
}

TEST(SysvUndo, NoRightMeansNone) {
  run_in_namespace([] {
    const int id = make_semaphores(1, {3}, 0600);
    EXPECT_THAT(find_undo(
                    id, 1, 500, [](int, std::span<const sembuf>) { return -EACCES; }, values_here),
                ElementsAre(0));
    EXPECT_THROW(find_undo(
                     id, 1, 500, [](int, std::span<const sembuf>) { return -ENOMEM; }, values_here),
                 Error);
    EXPECT_THROW(find_undo(
                     id, 1, 500, [](int, std::span<const sembuf>) { return 0; }, values_here),
                 Error);
  });
}

// A stopped process of another user.
class Stopped {
 public:
  explicit Stopped(pid_t pid) {
    processes.emplace_back();
    StoppedProcess& process = processes.back();
    process.ref.pid = process.ref.vpid = pid;
    process.threads.push_back(Tracee::seize(pid));
    process.threads[0].interrupt();
    process.threads[0].wait_stopped();
    saved_ = process.threads[0].regs();
    process.remote = std::make_unique<RemoteProcess>(process.threads[0], pid, find_syscall_instruction(pid));
    const int64_t scratch = process.remote->call(
        "mmap", SYS_mmap, {0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, static_cast<uint64_t>(-1), 0});
    process.remote->set_scratch({static_cast<uint64_t>(scratch)}, 4096);
  }
  ~Stopped() { processes[0].threads[0].set_regs(saved_); }
  RemoteProcess& remote() { return *processes[0].remote; }
  std::vector<StoppedProcess> processes;

 private:
  user_regs_struct saved_{};
};

TEST(SysvUndo, ThereAndBackThroughARealProcess) {
  run_in_namespace([] {
    int id = -1;
    run_child([] {
      become(1000);
      make_semaphores(1, {1, 0, 5});
    });
    id = ::semget(1, 0, 0);
    need(id >= 0, "semget");
    pb::Capsule capsule;
    pb::Process& state = *capsule.add_processes();
    {
      Bystander holder([&] {
        become(1000);
        need(operate(id, {{0, -1, SEM_UNDO}, {1, 2, SEM_UNDO}}) == 0, "semop");
      });
      {
        Stopped stopped(holder.pid());
        capture_sysv(list_ipc_objects(), *capsule.mutable_sysv());
        capture_sem_undo(stopped.processes, {&state}, capsule.sysv());
      }
      EXPECT_THAT(semaphore_values(id, 3), ElementsAre(0, 2, 5));
      holder.end();
      EXPECT_THAT(semaphore_values(id, 3), ElementsAre(1, 0, 5)) << "its list was still its own";
    }
    ASSERT_EQ(state.sem_undo_size(), 2);
    EXPECT_EQ(state.sem_undo(0).adjust(), 1);
    EXPECT_EQ(state.sem_undo(1).index(), 1U);
    EXPECT_EQ(state.sem_undo(1).adjust(), -2);

    fresh_ipc_namespace();
    const RestoredSysv restored = restore_sysv(capsule, 1000, 1000);
    Bystander again([] { become(1000); });
    {
      Stopped stopped(again.pid());
      restore_sem_undo(stopped.remote(), state, restored);
      pb::Process second;
      capture_sem_undo(stopped.processes, {&second}, capsule.sysv());
      EXPECT_EQ(second.sem_undo_size(), 2);
    }
    EXPECT_THAT(semaphore_values(id, 3), ElementsAre(0, 2, 5));
    again.end();
    EXPECT_THAT(semaphore_values(id, 3), ElementsAre(1, 0, 5));
  });
}

}  // namespace
}  // namespace icp

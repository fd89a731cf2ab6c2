// SPDX-License-Identifier: GPL-2.0-or-later
#include <gmock/gmock.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/sysv/ipc_namespace.h"
#include "engine/sysv/ledger.h"
#include "engine/sysv/ledger_namespace.h"
#include "sysv_test_util.h"

namespace icp {
namespace {

using namespace icp::test;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
namespace fs = std::filesystem;

constexpr uid_t kUser = 1000;

// A directory in a file system of the child's own mount namespace.
std::string private_base() {
  need(::mount("none", "/mnt", "tmpfs", 0, "mode=700") == 0, "mount tmpfs");
  return "/mnt/icp";
}

ProcessRef ref_of(pid_t pid) {
  ProcessRef ref;
  ref.pid = ref.vpid = pid;
  ref.start_time = ProcStat::read(pid).start_time_ticks;
  return ref;
}

std::vector<int> keys_of(const std::vector<IpcObject>& objects) {
  std::vector<int> keys;
  for (const IpcObject& object : objects) keys.push_back(object.key);
  return keys;
}

uint64_t own_namespace() { return ipc_namespace_inode(current_ipc_namespace().get()); }

// A step: a process that joins the ledger, makes a segment as the user, and ends.
void run_step(const std::string& base, uint32_t job, uint32_t restart, int key, IpcMode mode = IpcMode::kPrivate) {
  run_child([&] {
    const JobLedger ledger = JobLedger::create_or_join(base, "n1", job, restart, kUser, mode);
    become(kUser);
    make_segment(key, 4096);
  });
}

TEST(SysvLedger, StepsShareANamespaceThatIsEmptiedAtTheEnd) {
  run_in_namespace([] {
    const std::string base = private_base();
    make_segment(99, 100);  // the node's own
    const uint64_t host = own_namespace();
    run_child([&] {
      IpcLimits limits = IpcLimits::read();
      limits.msg_queue_bytes = 65536;
      limits.apply();
      const JobLedger ledger = JobLedger::create_or_join(base, "n1", 7, 0, kUser, IpcMode::kPrivate);
      EXPECT_NE(own_namespace(), host);
      EXPECT_EQ(IpcLimits::read().msg_queue_bytes, 65536U) << "the administrator's limits hold for jobs";
      EXPECT_EQ(ledger.facts().host_namespace, host);
      make_segment(1, 4096);
      make_semaphores(2, {1});
      make_queue(3);
    });
    run_step(base, 7, 0, 4);
    run_child([&] {
      JobLedger::create_or_join(base, "n1", 7, 0, kUser, IpcMode::kHost);  // the first step's mode counts
      EXPECT_THAT(keys_of(list_ipc_objects()), ElementsAre(1, 4, 2, 3));
    });
    struct stat info {};
    need(::stat((base + "/n1/job_7.0").c_str(), &info) == 0, "stat");
    EXPECT_EQ(info.st_mode & 0777, 0700U);

    const auto results = JobLedger::cleanup(base, "n1", 7, {});
    ASSERT_THAT(results, SizeIs(1));
    EXPECT_THAT(keys_of(results[0].removed), ElementsAre(1, 4, 2, 3));
    EXPECT_THAT(results[0].problems, IsEmpty());
    EXPECT_FALSE(fs::exists(base + "/n1/job_7.0"));
    EXPECT_THAT(JobLedger::cleanup(base, "n1", 7, {}), IsEmpty());
    EXPECT_EQ(own_namespace(), host);
    EXPECT_THAT(keys_of(list_ipc_objects()), ElementsAre(99));
  });
}

TEST(SysvLedger, OtherJobsAndRunsStay) {
  run_in_namespace([] {
    const std::string base = private_base();
    for (const uint32_t restart : {0U, 1U, 2U}) run_step(base, 7, restart, 10 + static_cast<int>(restart));
    run_step(base, 70, 0, 20);
    fs::create_directory(base + "/n1/job_7.0.bak");
    auto results = JobLedger::cleanup(base, "n1", 7, {.only = {}, .except = 2, .below = 2});
    ASSERT_THAT(results, SizeIs(2));
    EXPECT_THAT(keys_of(results[0].removed), ElementsAre(10));
    EXPECT_THAT(keys_of(results[1].removed), ElementsAre(11));
    EXPECT_THAT(JobLedger::cleanup(base, "n2", 7, {}), IsEmpty());
    results = JobLedger::cleanup(base, "n1", 7, {.only = 2, .except = {}, .below = {}});
    ASSERT_THAT(results, SizeIs(1));
    EXPECT_THAT(keys_of(results[0].removed), ElementsAre(12));
    const auto left = JobLedger::find_stale(base, "n1");
    ASSERT_THAT(left, SizeIs(1));
    EXPECT_EQ(left[0].job, 70U);
    EXPECT_EQ(left[0].facts->uid, kUser);
    EXPECT_FALSE(left[0].in_use);
    EXPECT_TRUE(fs::exists(base + "/n1/job_7.0.bak"));
  });
}

TEST(SysvLedger, ALivingProcessIsSeenAndItsSegmentMarked) {
  run_in_namespace([] {
    const std::string base = private_base();
    Bystander task([&] {
      JobLedger::create_or_join(base, "n1", 7, 0, kUser, IpcMode::kPrivate);
      become(kUser);
      need(::shmat(make_segment(1, 4096), nullptr, 0) != nullptr, "shmat");
    });
    EXPECT_TRUE(JobLedger::find_stale(base, "n1").at(0).in_use);
    const auto results = JobLedger::cleanup(base, "n1", 7, {});
    EXPECT_THAT(keys_of(results.at(0).removed), ElementsAre(1));
    EXPECT_EQ(results[0].removed[0].attached, 1U);
    EXPECT_FALSE(fs::exists(base + "/n1/job_7.0"));
  });
}

TEST(SysvLedger, FirstStepsRace) {
  run_in_namespace([] {
    const std::string base = private_base();
    std::vector<pid_t> steps;
    for (int i = 0; i < 12; ++i) {
      steps.push_back(start_child([&, i] {
        JobLedger::create_or_join(base, "n1", 7, 0, kUser, IpcMode::kPrivate);
        make_segment(100 + i, 100);
      }));
    }
    for (const pid_t step : steps) EXPECT_EQ(wait_for(step), 0);
    EXPECT_THAT(JobLedger::cleanup(base, "n1", 7, {}).at(0).removed, SizeIs(12));
  });
}

// Every state that a killed step or a killed cleanup can leave.
TEST(SysvLedger, HalfMadeLedgersAreFinishedOrRemoved) {
  run_in_namespace([] {
    const std::string base = private_base();
    const std::string job = base + "/n1/job_7.0";
    const std::vector<std::function<void()>> leftovers = {
        [&] { fs::remove(job + "/facts"); },
        [&] { std::ofstream(job + "/facts") << "job 7\nrestart 0\nuid 10"; },
        [&] { std::ofstream(job + "/facts.tmp") << "job"; },
        [&] { remove_pin(job + "/ipcns"); },
        [&] {
          remove_pin(job + "/ipcns");
          std::ofstream(job + "/ipcns").flush();
        },
        [&] {
          remove_pin(job + "/ipcns");
          fs::remove(job + "/facts");
        },
        [&] {
          need(::mount((job + "/ipcns").c_str(), (job + "/ipcns").c_str(), nullptr, MS_BIND, nullptr) == 0, "bind");
        },
    };
    for (size_t i = 0; i < leftovers.size(); ++i) {
      SCOPED_TRACE(i);
      run_step(base, 7, 0, 1);
      leftovers[i]();
      JobLedger::find_stale(base, "n1");
      run_step(base, 7, 0, 2);  // the next step of the job works ...
      leftovers[i]();
      const auto results = JobLedger::cleanup(base, "n1", 7, {});  // ... and so does the end
      EXPECT_THAT(results.at(0).problems, IsEmpty());
      EXPECT_FALSE(fs::exists(job));
    }
  });
}

TEST(SysvLedger, RefusesWhatIsNotSafe) {
  run_in_namespace([] {
    const std::string base = private_base();
    run_step(base, 7, 0, 1);
    const auto join = [&](const std::string& node, uid_t uid) {
      JobLedger::create_or_join(base, node, 7, 0, uid, IpcMode::kPrivate);
    };
    const uint64_t before = own_namespace();
    EXPECT_THROW(join("n1", kUser + 1), Error);
    EXPECT_THROW(join("../n1", kUser), Error);
    EXPECT_THROW(join("", kUser), Error);
    need(::chown((base + "/n1/job_7.0").c_str(), kUser, kUser) == 0, "chown");
    EXPECT_THROW(join("n1", kUser), Error);
    EXPECT_THAT(JobLedger::cleanup(base, "n1", 7, {}).at(0).problems, SizeIs(1));
    need(::chown((base + "/n1/job_7.0").c_str(), 0, 0) == 0, "chown");
    need(::chmod((base + "/n1").c_str(), 0777) == 0, "chmod");
    EXPECT_THROW(join("n1", kUser), Error);
    EXPECT_EQ(own_namespace(), before);
  });
}

TEST(SysvLedger, FailedPinLeavesTheThreadWhereItWas) {
  run_in_namespace([] {
    const uint64_t before = own_namespace();
    EXPECT_THROW(make_pinned_namespace("/nowhere/at/all"), Error);
    need(::mkdir((private_base() + "-dir").c_str(), 0700) == 0, "mkdir");
    EXPECT_THROW(make_pinned_namespace("/mnt/icp-dir"), Error);
    EXPECT_EQ(own_namespace(), before);
  });
}

TEST(SysvLedger, FromInsideTheJobsNamespaceNothingIsRemoved) {
  run_in_namespace([] {
    const std::string base = private_base();
    run_child([&] {
      JobLedger::create_or_join(base, "n1", 7, 0, kUser, IpcMode::kPrivate);
      make_segment(1, 100);
      EXPECT_THAT(JobLedger::cleanup(base, "n1", 7, {}).at(0).problems, SizeIs(1));
      EXPECT_THAT(list_ipc_objects(), SizeIs(1));
    });
  });
}

// Mode host: the child's own namespace is the node's.
TEST(SysvLedger, HostModeRemovesLeakedAndKeepsNeighbours) {
  run_in_namespace([] {
    const std::string base = private_base();
    run_child([] {
      become(kUser);
      make_segment(1, 100);  // of the same user, from before the job
    });
    const Bystander early([] {  // belongs to the job later on (icp watch --pid)
      become(kUser);
      make_segment(5, 100);
    });
    ::sleep(1);
    JobLedger ledger = JobLedger::create_or_join(base, "n1", 7, 0, kUser, IpcMode::kHost);
    std::optional<JobLedger> agent = JobLedger::open(base, "n1", 7, 0);
    ASSERT_TRUE(agent);
    EXPECT_EQ(agent->facts(), ledger.facts());
    {
      const Bystander neighbour([] {
        become(kUser);
        make_segment(2, 100);
        make_semaphores(3, {1});
        send(make_queue(4), 1, "x");
      });
      const Bystander task([] {
        become(kUser);
        make_segment(11, 100);
        make_semaphores(12, {1});
        send(make_queue(13), 1, "x");
        operate(::semget(3, 0, 0), {{0, 1, 0}});  // used by both from now on, like the queue
        send(::msgget(4, 0), 1, "y");
        need(::shmat(::shmget(2, 0, 0), nullptr, 0) != nullptr, "shmat");
      });
      const Bystander other_user([] {
        become(kUser + 1);
        make_segment(21, 100);
      });
      run_child([] {
        become(kUser);
        receive(::msgget(4, 0));  // the neighbour's side again
        operate(::semget(3, 0, 0), {{0, 1, 0}});
      });
      agent->record_pids({ref_of(early.pid()), ref_of(task.pid()), ref_of(other_user.pid())});
      agent->record_objects();
      EXPECT_TRUE(JobLedger::find_stale(base, "n1").at(0).in_use);
    }
    const auto results = JobLedger::cleanup(base, "n1", 7, {});
    EXPECT_THAT(keys_of(results.at(0).removed), ElementsAre(11, 12, 13));
    EXPECT_THAT(results[0].problems, IsEmpty());
    EXPECT_THAT(keys_of(list_ipc_objects()), ElementsAre(1, 5, 2, 21, 3, 4));
    EXPECT_FALSE(fs::exists(base + "/n1/job_7.0"));
  });
}

// What the kernel module tells: makers that nobody has ever seen.
TEST(SysvLedger, SegmentsOfProcessesThatCameAndWentAreTheJobs) {
  run_in_namespace([] {
    const std::string base = private_base();
    JobLedger ledger = JobLedger::create_or_join(base, "n1", 7, 0, kUser, IpcMode::kHost);
    std::vector<ShmCreation> told;
    // As the user, or as another one, in a process of its own; told of as the module does it.
    const auto make = [&](int key, uid_t uid) {
      run_child([&] {
        become(uid);
        make_segment(key, 100);
      });
      const IpcObject object = list_ipc_objects().back();
      told.push_back({own_namespace(), object.id, object.key, object.creator, object.create_time, 0, 0});
    };
    make(1, kUser);
    make(2, kUser);
    told.back().ipc_namespace += 1;  // a segment of that number somewhere else
    make(3, kUser + 1);              // whose owner is not the job's
    make(4, kUser);
    told.back().creator += 1;  // another one that had this id before
    make(5, kUser);
    told.back().time += 100;
    make(6, kUser);
    ledger.record_creations(told);
    ledger.record_objects();
    const int id = told.back().id;
    run_child([&] {
      become(kUser);
      shmid_ds info{};
      need(::shmctl(id, IPC_STAT, &info) == 0, "IPC_STAT");
      ::sleep(1);
      need(::shmctl(id, IPC_SET, &info) == 0, "IPC_SET");  // sets the time by which it is known
    });
    ledger.record_objects();
    const auto results = JobLedger::cleanup(base, "n1", 7, {});
    EXPECT_THAT(keys_of(results.at(0).removed), ElementsAre(1, 6));
    EXPECT_THAT(keys_of(list_ipc_objects()), ElementsAre(2, 3, 4, 5));
  });
}

TEST(SysvLedger, UsedAgainIdsAndPidsAreNotTheJobs) {
  run_in_namespace([] {
    const std::string base = private_base();
    JobLedger ledger = JobLedger::create_or_join(base, "n1", 7, 0, kUser, IpcMode::kHost);
    int id = 0;
    {
      const Bystander task([] {
        become(kUser);
        make_segment(1, 100);
      });
      ledger.record_pids({ref_of(task.pid())});
      ledger.record_objects();
      const IpcObject object = list_ipc_objects().at(0);
      id = object.id;
      need(::shmctl(id, IPC_RMID, nullptr) == 0, "IPC_RMID");
    }
    ledger.record_pids({});
    // A neighbour's segment of the same user gets the same id.
    run_child([&] {
      std::ofstream("/proc/sys/kernel/shm_next_id") << id;
      become(kUser);
      EXPECT_EQ(make_segment(2, 100), id);
    });
    // And one whose creator has a pid that the job had before: noted as if it had been the job's until long ago.
    const Bystander neighbour([] {
      become(kUser);
      make_segment(3, 100);
    });
    const ProcessRef now = ref_of(neighbour.pid());
    PidSpan span{now.pid, now.start_time - 1, unix_time_of(now.start_time) - 100, std::nullopt};
    append_lines(ledger.directory(), "pids", pid_line(span));
    const auto results = JobLedger::cleanup(base, "n1", 7, {});
    EXPECT_THAT(results.at(0).removed, IsEmpty());
    EXPECT_THAT(list_ipc_objects(), SizeIs(2));
  });
}

TEST(SysvLedger, HostModeInAnotherNamespaceRemovesNothing) {
  run_in_namespace([] {
    const std::string base = private_base();
    run_step(base, 7, 0, 1, IpcMode::kHost);
    run_child([&] {
      fresh_ipc_namespace();
      const auto results = JobLedger::cleanup(base, "n1", 7, {});
      EXPECT_THAT(results.at(0).problems.at(0), HasSubstr("other than this one"));
    });
    EXPECT_THAT(list_ipc_objects(), SizeIs(1));
  });
}

TEST(SysvLedger, AUserDoesNotFillTheNodesMemory) {
  run_in_namespace([] {
    const std::string directory = private_base();
    need(::mkdir(directory.c_str(), 0700) == 0, "mkdir");
    const std::string lines(1 << 20, '\n');
    int taken = 0;
    while (taken < 100 && append_lines(directory, "pids", lines)) ++taken;
    EXPECT_EQ(taken, 4);
    struct stat facts {};
    need(::stat((directory + "/pids").c_str(), &facts) == 0, "stat");
    EXPECT_EQ(facts.st_size, 4 << 20);
    EXPECT_TRUE(append_lines(directory, "objects", "\n"));
  });
}

TEST(SysvLedger, RecordsSurviveCutLines) {
  run_in_namespace([] {
    const std::string directory = private_base();
    need(::mkdir(directory.c_str(), 0700) == 0, "mkdir");
    const PidSpan first{10, 100, 1000, std::nullopt};
    const PidSpan second{11, 101, 1001, 2000};
    append_lines(directory, "pids", pid_line(first) + "+ 12 10");
    append_lines(directory, "pids", pid_line(second) + "nonsense\n+ -4 1 1 0\n\n");
    EXPECT_THAT(read_pids(directory), ElementsAre(first, second));
    PidSpan ended = first;
    ended.end = 3000;
    append_lines(directory, "pids", pid_line(ended) + "+ 13 1 1 0");  // no end of line: not there yet
    EXPECT_THAT(read_pids(directory), ElementsAre(ended, second));

    IpcObject object;
    object.kind = IpcKind::kSem;
    object.key = -5;
    object.id = 3;
    object.uid = 1000;
    object.create_time = 12345;
    append_lines(directory, "objects", "shm 1 2 3\n" + object_line(object) + "xxx 1 2 3 4 5\n");
    const auto objects = read_objects(directory);
    ASSERT_THAT(objects, SizeIs(1));
    EXPECT_TRUE(same_object(objects[0], object));
    EXPECT_EQ(read_facts(directory), std::nullopt);
    LedgerFacts facts{7, 1, 1000, IpcMode::kHost, 5, 6, "boot"};
    write_facts(directory, facts);
    EXPECT_EQ(read_facts(directory), facts);
  });
}

}  // namespace
}  // namespace icp

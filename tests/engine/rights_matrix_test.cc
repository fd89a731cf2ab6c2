// SPDX-License-Identifier: GPL-2.0-or-later
// Every number of an image at its extremes, one after the other: whatever of it is restored has no more rights, limits,
// priority or kernel memory than a fresh process of the same user. icp is root's, the image an ordinary user's.
#include <fcntl.h>
#include <google/protobuf/descriptor.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/ioprio.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image.pb.h"
#include "engine/image/sealed_file.h"
#include "tests/engine/process_rights.h"
#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr uid_t kNobody = 65534;
constexpr int kTimeoutMs = 30'000;

// What the user may have: below what root has, as a site sets it.
const std::map<int, rlim_t> kLimits = {
    {RLIMIT_NOFILE, 256},     {RLIMIT_MEMLOCK, 64 << 10}, {RLIMIT_RTPRIO, 0},           {RLIMIT_NICE, 0},
    {RLIMIT_RTTIME, 1000},    {RLIMIT_CORE, 0},           {RLIMIT_MSGQUEUE, 100 << 10}, {RLIMIT_FSIZE, 1 << 30},
    {RLIMIT_SIGPENDING, 1000}};

// ---- the program: a bit of everything that an image can hold ----

void* wait_for_ever(void*) {
  for (;;) ::pause();
}

// System V objects, which outlive it in the host's namespace.
struct Objects {
  int segment = -1, set = -1, queue = -1;
};

[[noreturn]] void program(const std::string& directory, int ready) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  pthread_t thread;
  CHECK_OR_DIE(::pthread_create(&thread, nullptr, wait_for_ever, nullptr) == 0);
  int ends[2];
  CHECK_OR_DIE(::pipe(ends) == 0 && ::write(ends[1], "abc", 3) == 3);
  CHECK_OR_DIE(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && ::write(ends[0], "x", 1) == 1);
  CHECK_OR_DIE(::socket(AF_INET, SOCK_DGRAM, 0) >= 0);
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in any{};
  any.sin_family = AF_INET;
  CHECK_OR_DIE(::bind(listener, reinterpret_cast<sockaddr*>(&any), sizeof any) == 0 && ::listen(listener, 5) == 0);
  const int count = ::eventfd(3, 0), timer = ::timerfd_create(CLOCK_MONOTONIC, 0), epoll = ::epoll_create1(0);
  epoll_event event{};
  event.events = EPOLLIN;
  CHECK_OR_DIE(::epoll_ctl(epoll, EPOLL_CTL_ADD, count, &event) == 0);
  const itimerspec later{{1, 0}, {1000, 0}};
  ::timerfd_settime(timer, 0, &later, nullptr);
  sigevent by_signal{};
  by_signal.sigev_signo = SIGUSR1;
  timer_t made;
  CHECK_OR_DIE(::timer_create(CLOCK_MONOTONIC, &by_signal, &made) == 0);
  ::timer_settime(made, 0, &later, nullptr);
  ::kill(::getpid(), SIGUSR1);
  const int memory = ::memfd_create("memory", MFD_ALLOW_SEALING);
  CHECK_OR_DIE(::ftruncate(memory, 8192) == 0);
  for (const int fd : {memory, -1})
    CHECK_OR_DIE(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0) !=
                 MAP_FAILED);
  const int file = ::open((directory + "/file").c_str(), O_RDWR | O_CREAT, 0600);
  CHECK_OR_DIE(file >= 0 && ::write(file, "data", 4) == 4 && ::open(directory.c_str(), O_RDONLY | O_DIRECTORY) >= 0);
  const Objects objects{::shmget(IPC_PRIVATE, 4096, 0600), ::semget(IPC_PRIVATE, 2, 0600), ::msgget(IPC_PRIVATE, 0600)};
  CHECK_OR_DIE(objects.set >= 0 && objects.queue >= 0 && ::shmat(objects.segment, nullptr, 0) != MAP_FAILED);
  const struct {
    long type;
    char text[4];
  } message = {1, "abc"};
  CHECK_OR_DIE(::msgsnd(objects.queue, &message, sizeof message.text, 0) == 0);
  if (::fork() == 0) {
    ::setsid();
    wait_for_ever(nullptr);
  }
  CHECK_OR_DIE(::write(ready, &objects, sizeof objects) == sizeof objects);
  ::close(ready);
  for (;;) ::pause();
}

void become_the_user() {
  for (const auto& [resource, value] : kLimits) {
    const rlimit limit{value, value};
    CHECK_OR_DIE(::setrlimit(static_cast<__rlimit_resource>(resource), &limit) == 0);
  }
}

// ---- the image, and icp on it ----

class Image {
 public:
  Image() {
    ::chmod(directory_.path().c_str(), 0755);
    work_ = directory_.path() + "/user";
    if (::mkdir(work_.c_str(), 0700) != 0 || ::chown(work_.c_str(), kNobody, kNobody) != 0) throw_errno("mkdir");
    make();
    read();
    fresh_ = fresh();
  }

  const Rights& fresh_rights() const { return fresh_; }
  const pb::Capsule& state() const { return state_; }

  // Restarts with another state and looks at what came of it. False: it was refused, in a sentence.
  bool restart(const pb::Capsule& state) {
    write(state);
    std::string said;
    const int status = run({ICP_PATH, "restart", "--dir", work_ + "/image", "--detach"}, said);
    EXPECT_TRUE(WIFEXITED(status)) << said;
    const pid_t pid = std::atoi(said.c_str());
    if (pid <= 0) {
      EXPECT_NE(status, 0) << said;
      EXPECT_NE(said.find("icp: "), std::string::npos) << said;
      return false;
    }
    check_rights_of_tree(pid, kNobody, fresh_);
    end();
    return true;
  }

 private:
  void make() {
    int ready[2];
    if (::pipe2(ready, O_CLOEXEC) != 0) throw_errno("pipe");
    const pid_t pid = ::fork();
    if (pid == 0) {
      const int null = ::open("/dev/null", O_RDWR);
      ::dup2(ready[1], 3);
      for (int fd = 0; fd < 3; fd++) ::dup2(null, fd);
      ::close_range(4, ~0u, 0);
      ::setsid();
      become_the_user();
      if (::chdir("/") != 0 || ::setgid(kNobody) != 0 || ::setgroups(0, nullptr) != 0 || ::setuid(kNobody) != 0)
        ::_exit(98);
      ::prctl(PR_SET_DUMPABLE, 1);  // as after exec(2)
      program(work_, 3);
    }
    ::close(ready[1]);
    Objects objects;
    EXPECT_EQ(::read(ready[0], &objects, sizeof objects), static_cast<ssize_t>(sizeof objects));
    ::close(ready[0]);
    std::string said;
    const int status =
        run({ICP_PATH, "checkpoint", "--dir", work_ + "/image", "--pid", std::to_string(pid), "--kill"}, said);
    if (status != 0) ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    ::shmctl(objects.segment, IPC_RMID, nullptr);
    ::semctl(objects.set, 0, IPC_RMID);
    ::msgctl(objects.queue, IPC_RMID, nullptr);
    if (status != 0) throw_error(ErrorKind::kSystem, "no version: {}", said);
  }

  static Rights fresh() {
    int ready[2];
    if (::pipe(ready) != 0) throw_errno("pipe");
    const pid_t pid = ::fork();
    if (pid == 0) {
      become_the_user();
      if (::setgid(kNobody) != 0 || ::setgroups(0, nullptr) != 0 || ::setuid(kNobody) != 0) ::_exit(98);
      if (::write(ready[1], "r", 1) == 1) wait_for_ever(nullptr);
    }
    char byte = 0;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]), ::close(ready[1]);
    const Rights rights = rights_of(pid);
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return rights;
  }

  // Runs icp with the limits of the user; `said`: all that it printed.
  static int run(const std::vector<std::string>& command, std::string& said) {
    // A file: what was restored might hold a pipe open.
    const UniqueFd out(::memfd_create("said", MFD_CLOEXEC));
    const pid_t pid = ::fork();
    if (pid == 0) {
      std::vector<char*> words;
      for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
      words.push_back(nullptr);
      const int null = ::open("/dev/null", O_RDWR);
      ::dup2(null, 0), ::dup2(out.get(), 1), ::dup2(out.get(), 2);
      ::close_range(3, ~0u, 0);
      become_the_user();
      ::execv(words[0], words.data());
      ::_exit(127);
    }
    siginfo_t info{};
    for (int waited = 0; waited < kTimeoutMs; waited++, ::usleep(1000))
      if (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid) break;
    if (info.si_pid != pid) {
      ADD_FAILURE() << "icp does not end";
      ::kill(pid, SIGKILL);
    }
    int status = 0;
    ::waitpid(pid, &status, 0);
    char buffer[4096];
    const ssize_t got = ::pread(out.get(), buffer, sizeof buffer, 0);
    said.assign(buffer, got > 0 ? static_cast<size_t>(got) : 0);
    return status;
  }

  // Ends all that runs this program as the user: the first process may have ended by itself, and others not.
  static void end() {
    const std::string own = read_proc_link(::getpid(), "exe");
    const auto runs = [&](pid_t pid) {
      try {
        return read_proc_link(pid, "exe") == own && ProcStatus::read(pid).uid[0] == kNobody;
      } catch (const Error&) {
        return false;
      }
    };
    for (int i = 0; i < 5000; i++, ::usleep(1000)) {
      bool left = false;
      for (const pid_t pid : list_processes()) {
        if (!runs(pid)) continue;
        left = true;
        ::kill(pid, SIGKILL);
      }
      if (!left) return;
    }
    ADD_FAILURE() << "restored processes do not end";
  }

  std::string version() const { return work_ + "/image/v000001/" + node_; }
  static std::string content(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void read() {
    for (const auto& entry : std::filesystem::directory_iterator(work_ + "/image/v000001"))
      node_ = entry.path().filename();
    sealed_ = content(version() + "/state.icp");
    const std::string manifest = content(version() + "/manifest.icp");
    std::memcpy(&format_, sealed_.data() + 8, sizeof format_);  // as sealed_file.cc has it
    std::memcpy(&manifest_format_, manifest.data() + 8, sizeof manifest_format_);
    ASSERT_TRUE(state_.ParseFromString(sealed_.substr(32)) && manifest_.ParseFromString(manifest.substr(32)));
  }
  void write(const pb::Capsule& state) {
    const std::string text = seal("state.icp", state.SerializeAsString(), format_);
    pb::Manifest manifest = manifest_;
    for (pb::FileEntry& entry : *manifest.mutable_files()) {
      if (entry.name() != "state.icp") continue;
      entry.set_bytes(text.size());
      entry.set_xxh3(hash_of(text));
    }
    std::ofstream(version() + "/state.icp", std::ios::binary | std::ios::trunc) << text;
    std::ofstream(version() + "/manifest.icp", std::ios::binary | std::ios::trunc)
        << seal("manifest.icp", manifest.SerializeAsString(), manifest_format_);
  }

  const TempDir directory_;
  std::string work_, node_, sealed_;
  uint32_t format_ = 0, manifest_format_ = 0;
  pb::Capsule state_;
  pb::Manifest manifest_;
  Rights fresh_;
};

// ---- every number ----

bool is_number(const FieldDescriptor& field) {
  return field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE && field.cpp_type() != FieldDescriptor::CPPTYPE_STRING &&
         !field.is_repeated();
}

// Sets a number to its largest or its smallest value; false if it has that already.
bool set_extreme(Message& message, const FieldDescriptor& field, bool largest) {
  const auto& access = *message.GetReflection();
  const auto change = [&](auto value, auto get, auto set) {
    if ((access.*get)(message, &field) == value) return false;
    (access.*set)(&message, &field, value);
    return true;
  };
  using Access = google::protobuf::Reflection;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32:
      return change(largest ? UINT32_MAX : 0u, &Access::GetUInt32, &Access::SetUInt32);
    case FieldDescriptor::CPPTYPE_UINT64:
      return change(largest ? UINT64_MAX : uint64_t{0}, &Access::GetUInt64, &Access::SetUInt64);
    case FieldDescriptor::CPPTYPE_INT32:
      return change(largest ? INT32_MAX : INT32_MIN, &Access::GetInt32, &Access::SetInt32);
    case FieldDescriptor::CPPTYPE_INT64:
      return change(largest ? INT64_MAX : INT64_MIN, &Access::GetInt64, &Access::SetInt64);
    case FieldDescriptor::CPPTYPE_BOOL:
      return change(largest, &Access::GetBool, &Access::SetBool);
    case FieldDescriptor::CPPTYPE_ENUM: {
      const int last = largest ? field.enum_type()->value(field.enum_type()->value_count() - 1)->number() : 0;
      return change(last, &Access::GetEnumValue, &Access::SetEnumValue);
    }
    default:
      return false;
  }
}

// Calls `visit` for each message in a message, itself first.
void for_each_message(Message& message, const std::function<void(Message&)>& visit) {
  visit(message);
  const auto& access = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  access.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (!field->is_repeated()) {
      for_each_message(*access.MutableMessage(&message, field), visit);
      continue;
    }
    for (int i = 0; i < access.FieldSize(message, field); i++)
      for_each_message(*access.MutableRepeatedMessage(&message, field, i), visit);
  }
}

Image& image() {
  static Image made;
  return made;
}

class RightsMatrix : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root, whose rights are in question";
  }
};

// In the first message of its kind alone, or in all of them where there are several.
void all_numbers(bool everywhere) {
  std::map<std::string, const FieldDescriptor*> numbers;
  pb::Capsule state = image().state();
  for_each_message(state, [&](Message& message) {
    for (int i = 0; i < message.GetDescriptor()->field_count(); i++) {
      const FieldDescriptor& field = *message.GetDescriptor()->field(i);
      if (is_number(field)) numbers.emplace(field.full_name(), &field);
    }
  });
  EXPECT_GT(numbers.size(), 150u);
  int restored = 0, refused = 0;
  for (const auto& [name, field] : numbers) {
    for (const bool largest : {true, false}) {
      state = image().state();
      int changed = 0;
      for_each_message(state, [&](Message& message) {
        if (message.GetDescriptor() == field->containing_type() && (everywhere || changed == 0))
          changed += set_extreme(message, *field, largest);
      });
      if (changed < (everywhere ? 2 : 1)) continue;
      SCOPED_TRACE(name + (largest ? " at its largest" : " at its smallest"));
      (image().restart(state) ? restored : refused)++;
    }
  }
  std::printf("%d restored, %d refused\n", restored, refused);
  EXPECT_GT(restored, 0);
  EXPECT_GT(refused, 0);
  EXPECT_TRUE(image().restart(image().state()));
}

TEST_F(RightsMatrix, AsItWas) { EXPECT_TRUE(image().restart(image().state())); }
TEST_F(RightsMatrix, EveryNumberOnce) { all_numbers(false); }
TEST_F(RightsMatrix, EveryNumberEverywhere) { all_numbers(true); }

// All that could be wished for at once.
TEST_F(RightsMatrix, Greed) {
  pb::Capsule state = image().state();
  for (pb::Process& process : *state.mutable_processes()) {
    for (pb::Rlimit& limit : *process.mutable_rlimits()) limit.set_soft(UINT64_MAX), limit.set_hard(UINT64_MAX);
    process.set_oom_score_adj(-1000);
    process.set_no_new_privs(false);
    pb::Credentials& who = *process.mutable_credentials();
    who = {};
    for (const gid_t group : {0u, 4u, 42u}) who.add_groups(group);
    who.set_cap_effective(UINT64_MAX), who.set_cap_permitted(UINT64_MAX), who.set_cap_inheritable(UINT64_MAX);
    who.set_cap_ambient(UINT64_MAX), who.set_securebits(0xff);
    for (pb::Thread& thread : *process.mutable_threads()) {
      thread.set_sched_nice(-20);
      thread.set_ioprio(IOPRIO_PRIO_VALUE(IOPRIO_CLASS_RT, 0));
      thread.set_cpu_mask(std::string(128, '\xff'));
    }
    process.mutable_memory()->set_mlockall_flags(MCL_CURRENT | MCL_FUTURE);
  }
  image().restart(state);
  for (const int policy : {SCHED_FIFO, SCHED_RR, 6 /* SCHED_DEADLINE */}) {
    pb::Capsule urgent = image().state();
    for (pb::Process& process : *urgent.mutable_processes()) {
      for (pb::Thread& thread : *process.mutable_threads()) {
        thread.set_sched_policy(policy), thread.set_sched_priority(policy == 6 ? 0 : 99);
        thread.set_sched_runtime(1'000'000), thread.set_sched_deadline(2'000'000), thread.set_sched_period(2'000'000);
      }
    }
    image().restart(urgent);
  }
}

// Ids, capabilities, namespaces, directories and a filter of a thread's own.
TEST_F(RightsMatrix, OwnOfThreads) {
  const std::function<void(pb::Thread&)> wishes[] = {
      [](pb::Thread& thread) { *thread.mutable_credentials() = {}; },  // root
      [](pb::Thread& thread) {
        pb::Credentials& who = *thread.mutable_credentials();
        who.set_uid(1), who.set_euid(1), who.set_suid(1), who.set_fsuid(1);
      },
      [](pb::Thread& thread) {
        pb::Credentials& who = *thread.mutable_credentials();
        who.set_gid(42), who.set_egid(42), who.set_sgid(42), who.set_fsgid(42), who.add_groups(42);
      },
      [](pb::Thread& thread) {
        pb::Credentials& who = *thread.mutable_credentials();
        who.set_cap_effective(UINT64_MAX), who.set_cap_permitted(UINT64_MAX), who.set_cap_inheritable(UINT64_MAX);
        who.set_cap_bounding(UINT64_MAX), who.set_cap_ambient(UINT64_MAX), who.set_securebits(UINT32_MAX);
      },
      [](pb::Thread& thread) {
        for (const uint32_t flag : {CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP})
          thread.add_namespaces(flag);
      },
      [](pb::Thread& thread) { thread.add_namespaces(UINT32_MAX); },
      [](pb::Thread& thread) { thread.mutable_directories()->set_root("/proc/1/root"); },
      [](pb::Thread& thread) { thread.mutable_directories()->set_of(UINT32_MAX); },
      [](pb::Thread& thread) { thread.mutable_table()->set_of(UINT32_MAX); },
      [](pb::Thread& thread) { thread.set_seccomp_strict(true); },
      [](pb::Thread& thread) { thread.add_filters(UINT32_MAX); },
  };
  int number = 0;
  for (const auto& wish : wishes) {
    for (const bool main_thread : {true, false}) {
      SCOPED_TRACE(fmt::format("wish {} of {}", number, main_thread ? "the main thread" : "another one"));
      pb::Capsule state = image().state();
      pb::Process& process = *state.mutable_processes(0);
      pb::Thread& thread = *process.mutable_threads(main_thread ? 0 : process.threads_size() - 1);
      if (number < 4) *thread.mutable_credentials() = process.credentials();
      wish(thread);
      image().restart(state);
    }
    number++;
  }
  EXPECT_TRUE(image().restart(image().state()));
}

// Memory below vm.mmap_min_addr, and more of it locked than the limit allows.
TEST_F(RightsMatrix, Mappings) {
  const auto with_mapping = [](uint64_t start, uint64_t end, bool locked) {
    pb::Capsule state = image().state();
    auto& mappings = *state.mutable_processes(0)->mutable_memory()->mutable_mappings();
    pb::Mapping& added = *mappings.Add();
    added.set_start(start), added.set_end(end), added.set_prot(PROT_READ | PROT_WRITE), added.set_locked(locked);
    std::sort(mappings.begin(), mappings.end(),
              [](const pb::Mapping& a, const pb::Mapping& b) { return a.start() < b.start(); });
    return state;
  };
  image().restart(with_mapping(4096, 8192, false));
  image().restart(with_mapping(1 << 30, (1 << 30) + (64 << 20), true));
}

}  // namespace
}  // namespace icp::test

// SPDX-License-Identifier: GPL-2.0-or-later
// Each finding of icp doctor, made to happen: the machine is a directory of files, and answers as the test says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "coordinator/icp/doctor/checks.h"
#include "coordinator/icp/doctor/setup.h"
#include "engine/base/error.h"
#include "temp_dir.h"

namespace icp::doctor {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

uint64_t now_ms() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
}

// A node on which all is well; tests take one thing away.
class Doctor : public ::testing::Test {
 protected:
  Doctor() {
    host.root = dir.path();
    host.administrator = ::geteuid();
    host.kernel = {"6.12.0", "x86_64", {TrackerKind::kUserfaultfd, TrackerKind::kEverything}, true};
    host.run = [this](const std::vector<std::string>& command) -> std::optional<std::string> {
      if (command.back() == "--version") return "icpstepd " ICP_VERSION "\n";
      if (command.back() == "-V") return slurm;
      return std::nullopt;
    };
    host.try_munge = [](const Config&) {};
    host.ask_coordinator = [](const Config&) {
      net::Reply reply;
      reply.set_release(ICP_VERSION);
      reply.set_now_unix_ms(now_ms());
      return reply;
    };
    for (const char* name : {"pid", "ipc", "mnt", "time", "user"}) put(std::string("/proc/self/ns/") + name, "");
    put("/proc/sys/kernel/ns_last_pid", "17\n");
    put("/proc/sys/kernel/shm_next_id", "-1\n");
    put("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
    put("/etc/slurm/slurm.conf", "ClusterName=x\nProctrackType=proctrack/cgroup\nPluginDir=/plugins\n");
    put("/etc/slurm/plugstack.conf", "include /etc/slurm/plugstack.conf.d/*.conf\n");
    put("/etc/slurm/plugstack.conf.d/icp.conf", "optional spank_icp.so icpstepd=/agent/icpstepd\n");
    for (const char* name : {"icpstepd", "icp-proxy", "icp-init"}) put(std::string("/agent/") + name, "", 0755);
    fs::create_directories(dir / "plugins");
    fs::copy_file(ICP_BUILD_DIR "/spank/spank_icp.so", dir / "plugins/spank_icp.so");
  }

  void put(const std::string& path, const std::string& text, mode_t mode = 0644) {
    fs::create_directories(fs::path(host.at(path)).parent_path());
    std::ofstream(host.at(path)) << text;
    ::chmod(host.at(path).c_str(), mode);
  }
  void take(const std::string& path) { fs::remove_all(host.at(path)); }

  std::string slurm =
      "slurm-wlm " + SlurmVersion::of_number(plugin_facts(ICP_BUILD_DIR "/spank/spank_icp.so").slurm).text();
  test::TempDir dir;
  Host host;
};

// The check of that name; the first that is not ok, if it is there several times.
Check named(const Diagnosis& diagnosis, const std::string& name) {
  Check found;
  for (const Check& check : diagnosis.checks())
    if (check.name == name && (found.name.empty() || found.level == Level::kOk)) found = check;
  EXPECT_EQ(found.name, name);
  return found;
}

#define EXPECT_FINDING(diagnosis, check_name, expected_level, words) \
  do {                                                               \
    const Check check = named(diagnosis, check_name);                \
    EXPECT_EQ(check.level, expected_level) << line_of(check);        \
    EXPECT_THAT(check.text, HasSubstr(words));                       \
    EXPECT_NE(check.hint, "") << check.text;                         \
  } while (false)

void expect_all_well(const Diagnosis& diagnosis) {
  for (const Check& check : diagnosis.checks()) EXPECT_EQ(check.level, Level::kOk) << line_of(check);
}

// ---- the kernel ----------------------------------------------------------------------------------------------------

class KernelDoctor : public Doctor {
 protected:
  Diagnosis look() {
    Diagnosis diagnosis;
    check_kernel(host, diagnosis);
    return diagnosis;
  }
};

TEST_F(KernelDoctor, AllIsWell) { expect_all_well(look()); }

TEST_F(KernelDoctor, OldKernelAndOtherMachine) {
  host.kernel.release = "5.8.18";
  EXPECT_FINDING(look(), "kernel.release", Level::kError, "5.8.18");
  host.kernel.release = "4.18.0-553.el8";
  EXPECT_FINDING(look(), "kernel.release", Level::kError, "CAP_CHECKPOINT_RESTORE");
  host.kernel = {"6.12.0", "aarch64", {}, true};
  EXPECT_FINDING(look(), "kernel.release", Level::kError, "aarch64");
}

TEST_F(KernelDoctor, KernelWithoutCheckpointRestore) {
  take("/proc/sys/kernel/shm_next_id");
  EXPECT_FINDING(look(), "kernel.checkpoint_restore", Level::kError, "shm_next_id");
}

TEST_F(KernelDoctor, NoNamespaces) {
  put("/proc/sys/user/max_ipc_namespaces", "0\n");
  EXPECT_FINDING(look(), "kernel.namespaces", Level::kError, "max_ipc_namespaces");
  take("/proc/self/ns/pid");
  EXPECT_FINDING(look(), "kernel.namespaces", Level::kError, "no pid namespaces");
}

TEST_F(KernelDoctor, YamaForbidsAll) {
  put("/proc/sys/kernel/yama/ptrace_scope", "1\n");
  expect_all_well(look());
  for (const char* scope : {"2\n", "3\n"}) {
    put("/proc/sys/kernel/yama/ptrace_scope", scope);
    EXPECT_FINDING(look(), "kernel.ptrace", Level::kError, "ptrace_scope");
  }
}

TEST_F(KernelDoctor, NothingFindsWrittenPages) {
  host.kernel.trackers = {TrackerKind::kEverything};
  EXPECT_FINDING(look(), "kernel.tracking", Level::kWarning, "every version reads all memory");
  host.kernel.trackers = {TrackerKind::kSoftDirty, TrackerKind::kEverything};
  expect_all_well(look());
}

TEST_F(KernelDoctor, ModuleOfAnotherRelease) {
  put("/sys/module/icp_track/version", ICP_VERSION "\n");
  expect_all_well(look());
  put("/sys/module/icp_track/version", "0.0.9\n");
  EXPECT_FINDING(look(), "kernel.module", Level::kWarning, "0.0.9");
  take("/sys/module/icp_track");
  put("/usr/src/icp_track-0.1.0/dkms.conf", "");
  EXPECT_FINDING(look(), "kernel.module", Level::kWarning, "not loaded");
}

TEST_F(KernelDoctor, IoUringIsForbidden) {
  put("/proc/sys/kernel/io_uring_disabled", "1\n");
  expect_all_well(look());
  put("/proc/sys/kernel/io_uring_disabled", "2\n");
  EXPECT_FINDING(look(), "kernel.io_uring", Level::kWarning, "io_uring_disabled is 2");
}

TEST_F(KernelDoctor, UsersWithoutNamespacesAreNoFinding) {
  put("/proc/sys/kernel/unprivileged_userns_clone", "0\n");
  const Check check = named(look(), "kernel.user_namespaces");
  EXPECT_EQ(check.level, Level::kOk);
  EXPECT_THAT(check.text, HasSubstr("unprivileged_userns_clone is 0"));
}

// ---- cgroups and systemd -------------------------------------------------------------------------------------------

class SystemDoctor : public Doctor {
 protected:
  Diagnosis look(IpcPolicy ipc = IpcPolicy::kPrivate) {
    Config config;
    config.ipc = ipc;
    Diagnosis diagnosis;
    check_system(host, config, diagnosis);
    return diagnosis;
  }
  void with_systemd() { fs::create_directories(host.at("/run/systemd/system")); }
};

TEST_F(SystemDoctor, BothVersionsOfCgroups) {
  expect_all_well(look());
  take("/sys/fs/cgroup");
  EXPECT_FINDING(look(), "system.cgroup", Level::kWarning, "no control groups");
  fs::create_directories(host.at("/sys/fs/cgroup/freezer"));
  expect_all_well(look());
  put("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu pids\n");
  EXPECT_FINDING(look(), "system.cgroup", Level::kWarning, "memory");
}

TEST_F(SystemDoctor, DelegationOfSlurmd) {
  with_systemd();
  put("/etc/systemd/logind.conf", "[Login]\nRemoveIPC=no\n");
  put("/usr/lib/systemd/system/slurmd.service", "[Service]\nDelegate=yes\n");
  expect_all_well(look());
  put("/usr/lib/systemd/system/slurmd.service", "[Service]\nType=simple\n");
  EXPECT_FINDING(look(), "system.delegation", Level::kWarning, "Delegate");
  put("/etc/systemd/system/slurmd.service.d/x.conf", "[Service]\nDelegate=yes\n");
  expect_all_well(look());
  put("/etc/systemd/system/slurmd.service.d/y.conf", "[Service]\nDelegate=no\n");
  EXPECT_FINDING(look(), "system.delegation", Level::kWarning, "Delegate");
}

TEST_F(SystemDoctor, LogindRemovesObjects) {
  with_systemd();
  expect_all_well(look());
  EXPECT_FINDING(look(IpcPolicy::kHost), "system.remove_ipc", Level::kWarning, "logind removes");
  put("/etc/systemd/logind.conf", "#RemoveIPC=no\n");
  EXPECT_FINDING(look(IpcPolicy::kHost), "system.remove_ipc", Level::kWarning, "logind removes");
  put("/etc/systemd/logind.conf.d/no.conf", "[Login]\nRemoveIPC=no\n");
  expect_all_well(look(IpcPolicy::kHost));
}

// ---- what is installed ---------------------------------------------------------------------------------------------

class InstallDoctor : public Doctor {
 protected:
  Diagnosis look() {
    Diagnosis diagnosis;
    check_config(host, "/etc/slurm-icp/icp.yaml", diagnosis);
    check_installation(host, "/agent/icpstepd", diagnosis);
    return diagnosis;
  }
};

TEST_F(InstallDoctor, AllIsWell) {
  expect_all_well(look());
  put("/etc/slurm-icp/icp.yaml", "ipc: host\n");
  expect_all_well(look());
}

TEST_F(InstallDoctor, WrongConfiguration) {
  put("/etc/slurm-icp/icp.yaml", "ipc: private\nkeeep: 3\n");
  EXPECT_FINDING(look(), "config.icp_yaml", Level::kError, "icp.yaml:2: keeep: unknown key");
}

TEST_F(InstallDoctor, ConfigurationThatAnybodyCanWrite) {
  put("/etc/slurm-icp/icp.yaml", "", 0666);
  EXPECT_FINDING(look(), "config.icp_yaml", Level::kError, "written by everybody");
}

TEST_F(InstallDoctor, MissingPrograms) {
  for (const char* name : {"/agent/icp-init", "/agent/icp-proxy", "/agent/icpstepd"}) {
    take(name);
    EXPECT_FINDING(look(), "install.programs", Level::kError, name);
  }
}

TEST_F(InstallDoctor, ProgramThatIsNone) {
  ::chmod(host.at("/agent/icp-init").c_str(), 0644);
  EXPECT_FINDING(look(), "install.programs", Level::kError, "cannot be executed");
}

TEST_F(InstallDoctor, DirectoryThatAnybodyCanWrite) {
  ::chmod(host.at("/agent").c_str(), 0777);
  EXPECT_FINDING(look(), "install.programs", Level::kError, "/agent can be written by everybody");
}

TEST_F(InstallDoctor, AgentOfAnotherRelease) {
  host.run = [](const auto&) { return "icpstepd 9.9.9\n"; };
  EXPECT_FINDING(look(), "install.agent", Level::kError, "9.9.9");
  host.run = [](const auto&) { return std::nullopt; };
  EXPECT_FINDING(look(), "install.agent", Level::kError, "says nothing");
}

// ---- Slurm ---------------------------------------------------------------------------------------------------------

class SlurmDoctor : public Doctor {
 protected:
  Diagnosis look() {
    Diagnosis diagnosis;
    SlurmChecks what;
    if (host.exists("/etc/slurm/slurm.conf")) what.conf = SlurmConf::parse(host, "/etc/slurm/slurm.conf");
    agent = check_slurm(host, what, diagnosis);
    return diagnosis;
  }
  std::string agent;
};

TEST_F(SlurmDoctor, AllIsWell) {
  expect_all_well(look());
  EXPECT_EQ(agent, "/agent/icpstepd");
}

TEST_F(SlurmDoctor, PluginForAnotherSlurm) {
  slurm = "slurm 19.05.2\n";
  EXPECT_FINDING(look(), "slurm.plugin", Level::kError, "19.05.2");
  slurm = "no version";
  EXPECT_FINDING(look(), "slurm.plugin", Level::kWarning, "cannot be found out");
}

TEST_F(SlurmDoctor, PluginThatIsNone) {
  put("/plugins/spank_icp.so", "no ELF at all");
  EXPECT_FINDING(look(), "slurm.plugin", Level::kError, "not a Slurm plugin");
  take("/plugins/spank_icp.so");
  EXPECT_FINDING(look(), "slurm.plugin", Level::kError, "none of Slurm's plugin directories");
}

TEST_F(SlurmDoctor, PluginOfAnotherRelease) {
  std::ifstream file(host.at("/plugins/spank_icp.so"), std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const std::string release(ICP_VERSION "\0", sizeof ICP_VERSION);
  for (size_t at = bytes.find(release); at != std::string::npos; at = bytes.find(release, at + 1)) bytes[at] = '7';
  put("/plugins/spank_icp.so", bytes);
  EXPECT_FINDING(look(), "slurm.plugin_release", Level::kError, "7.1.0");
}

TEST_F(SlurmDoctor, NoLineForThePlugin) {
  put("/etc/slurm/plugstack.conf.d/icp.conf", "# optional spank_icp.so\n");
  EXPECT_FINDING(look(), "slurm.plugstack", Level::kError, "no line for spank_icp.so");
  take("/etc/slurm/plugstack.conf");
  EXPECT_FINDING(look(), "slurm.plugstack", Level::kError, "no line for spank_icp.so");
}

TEST_F(SlurmDoctor, WrongLines) {
  const auto with = [&](const std::string& text) {
    put("/etc/slurm/plugstack.conf.d/icp.conf", text);
    return named(look(), "slurm.plugstack");
  };
  EXPECT_THAT(with("optional spank_icp.so icpstep=/x\n").text, HasSubstr("unknown argument 'icpstep=/x'"));
  EXPECT_THAT(with("optional spank_icp.so config=icp.yaml\n").text, HasSubstr("needs an absolute path"));
  EXPECT_THAT(with("required spank_icp.so\n").text, HasSubstr("without the plugin no job runs"));
  EXPECT_THAT(with("optional spank_icp.so\noptional /plugins/spank_icp.so\n").text, HasSubstr("both load"));
  EXPECT_THAT(with("optoinal spank_icp.so\n").text, HasSubstr("icp.conf:1: 'optoinal'"));
  put("/etc/slurm/plugstack.conf.d/icp.conf", "optional spank_icp.so config=/etc/other.yaml\n");
  EXPECT_FINDING(look(), "slurm.plugstack_config", Level::kWarning, "/etc/other.yaml");
}

TEST_F(SlurmDoctor, LeftoverOfAnEditor) {
  put("/etc/slurm/plugstack.conf", "include plugstack.conf.d/*\n");
  put("/etc/slurm/plugstack.conf.d/icp.conf~", "optional lua.so\n");
  EXPECT_FINDING(look(), "slurm.plugstack", Level::kError, "what an editor left");
}

TEST_F(SlurmDoctor, SettingsOfSlurm) {
  put("/etc/slurm/slurm.conf", "include more.conf\nPluginDir=/plugins\n");
  put("/etc/slurm/more.conf", "proctracktype=proctrack/linuxproc # why\nKillWait=2 JobRequeue=0\n");
  EXPECT_FINDING(look(), "slurm.proctrack", Level::kWarning, "proctrack/linuxproc");
  EXPECT_FINDING(look(), "slurm.kill_wait", Level::kWarning, "2 s");
  EXPECT_FINDING(look(), "slurm.requeue", Level::kWarning, "JobRequeue=0");
  put("/etc/slurm/more.conf", "NodeName=n[1-2] ProctrackType=proctrack/pgid\n");
  expect_all_well(look());
  take("/etc/slurm/slurm.conf");
  EXPECT_FINDING(look(), "slurm.conf", Level::kWarning, "no slurm.conf");
}

TEST_F(SlurmDoctor, CoordinatorOfAnotherUser) {
  Config config;
  config.coordinator_user = "root";
  const auto look_there = [&] {
    Diagnosis diagnosis;
    check_coordinator_machine(host, SlurmConf::parse(host, "/etc/slurm/slurm.conf"), config, diagnosis);
    return diagnosis;
  };
  expect_all_well(look_there());
  put("/etc/slurm/slurm.conf", "SlurmUser=slurm(64030)\n");
  EXPECT_FINDING(look_there(), "coordinator.user", Level::kError, "SlurmUser is slurm");
  config.coordinator_user = "no-such-user";
  EXPECT_FINDING(look_there(), "coordinator.state", Level::kError, "no user");
  config.coordinator_user = "daemon";
  fs::create_directories(host.at(config.state_dir));
  EXPECT_FINDING(look_there(), "coordinator.state", Level::kError, "belongs to user");
}

// ---- munged and icpctld --------------------------------------------------------------------------------------------

class ServiceDoctor : public Doctor {
 protected:
  ServiceDoctor() { config.coordinators = {{"ctl", 6830}}; }
  Diagnosis look() {
    Diagnosis diagnosis;
    check_services(host, config, diagnosis);
    return diagnosis;
  }
  void answer(const std::string& release, int64_t ahead_ms) {
    host.ask_coordinator = [=](const Config&) {
      net::Reply reply;
      reply.set_release(release);
      reply.set_now_unix_ms(now_ms() + static_cast<uint64_t>(ahead_ms));
      return reply;
    };
  }
  Config config;
};

TEST_F(ServiceDoctor, AllIsWell) {
  expect_all_well(look());
  config.coordinators.clear();
  host.try_munge = [](const Config&) { throw_error(ErrorKind::kSystem, "not asked without a coordinator"); };
  expect_all_well(look());
}

TEST_F(ServiceDoctor, NoMunge) {
  config.munge_socket = dir / "no-socket";
  host.try_munge = Host::local().try_munge;
  EXPECT_FINDING(look(), "munge", Level::kError, "no-socket");
}

TEST_F(ServiceDoctor, NobodyAnswers) {
  config.coordinators = {{"127.0.0.1", 1}};
  config.coordinator_user = "root";
  host.ask_coordinator = Host::local().ask_coordinator;
  EXPECT_FINDING(look(), "coordinator", Level::kError, "cannot reach icpctld");
}

TEST_F(ServiceDoctor, CoordinatorOfAnotherRelease) {
  answer("9.9.9", 0);
  EXPECT_FINDING(look(), "coordinator.release", Level::kError, "9.9.9");
  answer("", 0);
  EXPECT_FINDING(look(), "coordinator.release", Level::kWarning, "does not say");
}

TEST_F(ServiceDoctor, ClocksDiffer) {
  answer(ICP_VERSION, 5'000);
  EXPECT_FINDING(look(), "coordinator.clock", Level::kWarning, "5.0 s");
  answer(ICP_VERSION, -90'000);
  EXPECT_FINDING(look(), "coordinator.clock", Level::kError, "90.0 s");
}

// ---- the directory of images ---------------------------------------------------------------------------------------

Diagnosis seen(const DirectoryFacts& facts) {
  Diagnosis diagnosis;
  check_directory(facts, diagnosis);
  return diagnosis;
}

DirectoryFacts good_directory() {
  DirectoryFacts facts;
  facts.path = "/scratch";
  facts.type = "nfs";
  facts.free_bytes = 1ull << 40;
  facts.total_bytes = 1ull << 42;
  return facts;
}

TEST(DirectoryDoctor, AllIsWell) { expect_all_well(seen(good_directory())); }

TEST(DirectoryDoctor, EachFinding) {
  const auto with = [](auto change) {
    DirectoryFacts facts = good_directory();
    change(facts);
    return seen(facts);
  };
  EXPECT_FINDING(with([](auto& f) { f.error = "No such file or directory"; }), "directory", Level::kError, "No such");
  EXPECT_FINDING(with([](auto& f) { f.denied = "Permission denied"; }), "directory", Level::kError, "denied");
  EXPECT_FINDING(with([](auto& f) { f.volatile_memory = true; }), "directory.memory", Level::kWarning, "in memory");
  EXPECT_FINDING(with([](auto& f) { f.others = true; }), "directory.owner", Level::kError, "another user");
  EXPECT_FINDING(with([](auto& f) { f.locks = false; }), "directory.locks", Level::kError, "flock(2)");
  EXPECT_FINDING(with([](auto& f) { f.direct = false; }), "directory.direct", Level::kWarning, "O_DIRECT");
  EXPECT_FINDING(with([](auto& f) { f.free_bytes = 5 << 20; }), "directory.space", Level::kWarning, "5.0 MiB free");
}

TEST(DirectoryDoctor, ProbesARealOne) {
  const Identity user{::geteuid(), ::getegid(), {}};
  const test::TempDir dir("/tmp");
  const DirectoryFacts facts = probe_directory(dir.path(), user, true);
  EXPECT_EQ(facts.error + facts.denied, "");
  EXPECT_TRUE(facts.locks);
  EXPECT_FALSE(facts.others);
  EXPECT_GT(facts.total_bytes, 0u);
  EXPECT_TRUE(fs::is_empty(dir.path()));
  EXPECT_TRUE(probe_directory("/dev/shm", user, false).volatile_memory);
  EXPECT_THAT(probe_directory(dir / "none", user, true).error, HasSubstr("No such"));
  EXPECT_THAT(probe_directory(dir.write("file", ""), user, true).error, HasSubstr("Not a directory"));
}

TEST(DirectoryDoctor, WritesAsTheUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become nobody";
  const test::TempDir dir("/tmp");
  ::chmod(dir.path().c_str(), 0755);
  const Identity nobody{65534, 65534, {}};
  EXPECT_THAT(probe_directory(dir.path(), nobody, true).denied, HasSubstr("denied"));
  ::chmod(dir.path().c_str(), 01777);
  const DirectoryFacts facts = probe_directory(dir.path(), nobody, true);
  EXPECT_EQ(facts.denied, "");
  EXPECT_FALSE(facts.others);
}

// ---- how it is said ------------------------------------------------------------------------------------------------

TEST(Diagnosis, LinesAndJson) {
  Diagnosis diagnosis;
  diagnosis.ok("a", "fine");
  EXPECT_EQ(diagnosis.worst(), Level::kOk);
  diagnosis.warning("b", "odd\n\x1b[31m", "do this");
  EXPECT_EQ(diagnosis.worst(), Level::kWarning);
  EXPECT_EQ(summary_of(diagnosis), "1 ok, 1 warning, no errors");
  EXPECT_EQ(line_of(diagnosis.checks()[1]).find('\x1b'), std::string::npos);
  EXPECT_THAT(line_of(diagnosis.checks()[1]), HasSubstr("; do this"));
  diagnosis.error("c", "bad", "do that");
  const nlohmann::json json = json_of(diagnosis);
  EXPECT_EQ(json["level"], "error");
  EXPECT_EQ(json["checks"][2]["hint"], "do that");
  EXPECT_EQ(json["errors"], 1);
}

// ---- icp setup -----------------------------------------------------------------------------------------------------

class Setup : public Doctor {
 protected:
  Setup() { take("/etc/slurm/plugstack.conf.d"); }
  std::string plugstack() { return host.read("/etc/slurm/plugstack.conf").value_or("none"); }
  std::string fragment() { return host.read("/etc/slurm/plugstack.conf.d/icp.conf").value_or("none"); }
  SetupOptions options() {
    SetupOptions options;
    options.conf = SlurmConf::parse(host, "/etc/slurm/slurm.conf");
    return options;
  }
  size_t files() {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry : fs::recursive_directory_iterator(host.at("/etc/slurm"))) ++count;
    return count;
  }
};

TEST_F(Setup, WritesAndRemovesTheFragment) {
  const std::string before = plugstack();
  EXPECT_EQ(enable_plugin(host, options()).size(), 1u);
  EXPECT_EQ(plugstack(), before);
  EXPECT_THAT(fragment(), HasSubstr("\noptional spank_icp.so config=/etc/slurm-icp/icp.yaml icpstepd=/"));
  EXPECT_EQ(files(), 4u);  // slurm.conf, plugstack.conf, the directory and the fragment: nothing temporary
  EXPECT_TRUE(enable_plugin(host, options()).empty());
  EXPECT_EQ(disable_plugin(host, options().conf).size(), 1u);
  EXPECT_EQ(fragment(), "none");
  EXPECT_EQ(plugstack(), before);
  EXPECT_TRUE(disable_plugin(host, options().conf).empty());
}

TEST_F(Setup, MakesPlugstackConfIncludeIt) {
  put("/etc/slurm/plugstack.conf", "optional other.so");  // no line break at its end
  ::chmod(host.at("/etc/slurm/plugstack.conf").c_str(), 0640);
  EXPECT_EQ(enable_plugin(host, options()).size(), 2u);
  EXPECT_THAT(plugstack(), HasSubstr("optional other.so\ninclude /etc/slurm/plugstack.conf.d/icp.conf #"));
  struct stat info {};
  ::stat(host.at("/etc/slurm/plugstack.conf").c_str(), &info);
  EXPECT_EQ(info.st_mode & 07777, 0640u);
  EXPECT_EQ(Plugstack::read(host, "/etc/slurm/plugstack.conf").ours().size(), 1u);
  disable_plugin(host, options().conf);
  EXPECT_EQ(plugstack(), "optional other.so\n");
  take("/etc/slurm/plugstack.conf");
  enable_plugin(host, options());
  EXPECT_EQ(Plugstack::read(host, "/etc/slurm/plugstack.conf").ours().size(), 1u);
}

TEST_F(Setup, OtherLinesAreNotTouched) {
  put("/etc/slurm/plugstack.conf", "optional /x/spank_icp.so\n");
  EXPECT_THROW(enable_plugin(host, options()), Error);
  EXPECT_EQ(fragment(), "none");
  EXPECT_THAT(disable_plugin(host, options().conf).back(), HasSubstr("stays"));
  put("/etc/slurm/plugstack.conf", "include\n");
  EXPECT_THROW(enable_plugin(host, options()), Error);
}

}  // namespace
}  // namespace icp::doctor

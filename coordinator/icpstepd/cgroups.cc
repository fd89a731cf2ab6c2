// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/cgroups.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <string_view>
#include <thread>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"

namespace icp {
namespace {

namespace fs = std::filesystem;
constexpr const char* kRoot = kCgroupRoot;
constexpr int kScopeDepth = 5;  // directories above a scope, at most

bool write_text(const std::string& path, const std::string& text) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  return file && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// Whether slurmd has started the process as a slurmstepd, by what a user cannot choose: whose it is, all of its ids,
// and the file it runs. Names (argv[0], comm) are anybody's to set, and a set-user-id program of the user's choice has
// its real id still, or another file.
bool is_slurmstepd(pid_t pid) {
  try {
    const ProcStatus status = ProcStatus::read(pid);
    if (std::any_of(status.uid.begin(), status.uid.end(), [](uid_t id) { return id != ::geteuid(); })) return false;
    // "slurmstepd-wlm" is Debian's, and one that an update has replaced has " (deleted)" after it.
    return fs::path(read_proc_link(pid, "exe")).filename().string().starts_with("slurmstepd");
  } catch (const Error&) {
    return false;
  }
}

// Directories called `name` below `directory`, in slices and in what a container has put above them: slurmd makes its
// own beside the root of its cgroup namespace, in the slice it is told.
void find_scopes(const fs::path& directory, const std::string& node, int depth, std::vector<fs::path>& found) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) {
    const std::string name = entry.path().filename();
    if (!entry.is_directory(ignored)) continue;
    // "slurmstepd" alone where slurmd was built for one node a machine; then there is no other to mistake it for.
    if (name == node + "_slurmstepd.scope" || name == "slurmstepd.scope") {
      found.push_back(entry.path());
    } else if (depth > 1 && !name.ends_with(".scope") && !name.ends_with(".service")) {
      find_scopes(entry.path(), node, depth - 1, found);
    }
  }
}

bool is_sluid(const std::string& text) {
  return text.size() == 14 && text[0] == 's' &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) != 0; });
}

void add_processes(const fs::path& directory, std::set<pid_t>& pids) {
  std::ifstream file(directory / "cgroup.procs");
  for (pid_t pid = 0; file >> pid;) {
    if (pid > 1 && pid != ::getpid() && !is_slurmstepd(pid)) pids.insert(pid);
  }
}

// Of the directories and all below them.
std::set<pid_t> processes_in(const std::vector<std::string>& directories) {
  std::set<pid_t> pids;
  std::error_code ignored;
  for (const std::string& top : directories) {
    add_processes(top, pids);
    for (const auto& entry : fs::recursive_directory_iterator(top, ignored)) {
      if (entry.is_directory(ignored)) add_processes(entry.path(), pids);
    }
  }
  return pids;
}

// A frozen process does not die.
void thaw(const std::vector<std::string>& directories) {
  std::error_code ignored;
  for (const std::string& top : directories) {
    for (const auto& entry : fs::recursive_directory_iterator(top, ignored)) {
      if (entry.path().filename() == "freezer.state") write_text(entry.path(), "THAWED");
      if (entry.path().filename() == "cgroup.freeze") write_text(entry.path(), "0");
    }
  }
}

}  // namespace

std::string CgroupPlace::directory() const {
  std::string top = controllers.starts_with("name=") ? controllers.substr(5) : controllers;
  return std::string(kRoot) + (top.empty() ? "" : "/" + top) + path;
}

bool CgroupPlace::is_memory() const { return ("," + controllers + ",").find(",memory,") != std::string::npos; }

std::vector<CgroupPlace> cgroups_of(pid_t pid) {
  std::vector<CgroupPlace> places;
  for (CgroupEntry& entry : CgroupEntry::read(pid))
    places.push_back({std::move(entry.controllers), std::move(entry.path)});
  return places;
}

std::optional<std::string> job_directory(const std::string& path) {
  constexpr std::string_view kJob = "/job_";
  size_t end = std::string::npos;
  if (const size_t job = path.find(kJob); job != std::string::npos) {
    end = path.find('/', job + kJob.size());
  } else if (end = path.find("/step_"); end == std::string::npos || end == 0) {
    return std::nullopt;
  }
  return path.substr(0, end);
}

std::optional<std::string> above_job(const std::string& path, uint32_t job) {
  const std::string name = "/job_" + std::to_string(job);
  size_t cut = (path + "/").find(name + "/");
  if (cut == std::string::npos) {
    // Named by something else than the number: a step's parent is its job.
    const size_t step = path.find("/step_");
    cut = step == std::string::npos || step == 0 ? std::string::npos : path.rfind('/', step - 1);
  }
  if (cut == std::string::npos) return std::nullopt;
  if (const size_t user = path.rfind("/uid_", cut); user != std::string::npos) cut = user;
  return path.substr(0, cut);
}

JobName JobName::of_environment(uint32_t id) {
  const char* const sluid = std::getenv("SLURM_JOB_SLUID");
  return {id, sluid != nullptr && is_sluid(sluid) ? sluid : ""};
}

std::vector<std::string> job_directories(const std::string& root, const std::string& node, uid_t uid,
                                         const JobName& job) {
  const std::string job_name = "job_" + std::to_string(job.id), below = "uid_" + std::to_string(uid) + "/" + job_name;
  std::vector<std::string> found;
  std::error_code ignored;
  for (const auto& controller : fs::directory_iterator(root, ignored)) {
    for (const std::string& top : {"slurm_" + node, std::string("slurm")}) {
      if (const fs::path path = controller.path() / top / below; fs::is_directory(path, ignored)) found.push_back(path);
    }
  }
  std::vector<fs::path> scopes;
  find_scopes(root, node, kScopeDepth, scopes);
  for (const fs::path& scope : scopes) {
    for (const std::string& name : {job_name, job.sluid}) {
      if (!name.empty() && fs::is_directory(scope / name, ignored)) found.push_back(scope / name);
    }
  }
  return found;
}

void leave_job_cgroups(uint32_t job) {
  for (CgroupPlace place : cgroups_of(::getpid())) {
    // Under version 2 slurmstepd is below the job as well, where its memory counts and no task's signal reaches it.
    const auto above = above_job(place.path, job);
    if (!above || place.controllers.empty()) continue;
    place.path = *above;
    const std::string directory = place.directory();
    write_text(directory + "/cgroup.procs", "0");
  }
}

void join_memory_of_step(pid_t pid, const std::vector<CgroupPlace>& places) {
  for (CgroupPlace place : places) {
    if (!place.is_memory()) continue;
    const size_t step = place.path.find("/step_");
    if (step == std::string::npos) continue;  // Slurm does not limit memory by cgroups here
    place.path.resize(std::min(place.path.find('/', step + 1), place.path.size()));
    write_text(place.directory() + "/cgroup.procs", std::to_string(pid));
  }
}

namespace {

bool is_below(const std::string& path, const std::string& top) { return (path + "/").starts_with(top + "/"); }

// Of version 1 the name of the hierarchy's directory.
std::string hierarchy_of(const CgroupPlace& place) {
  return place.controllers.starts_with("name=") ? place.controllers.substr(5) : place.controllers;
}

}  // namespace

std::vector<CgroupPlace> groups_of_job(const std::vector<std::string>& directories,
                                       const std::vector<CgroupPlace>& own) {
  std::vector<CgroupPlace> groups;
  const std::string root = std::string(kRoot) + "/";
  for (const std::string& directory : directories) {
    if (!directory.starts_with(root)) continue;
    const std::string path = directory.substr(root.size());
    const bool version2 = path.find(".scope/") != std::string::npos;
    const size_t end = version2 ? 0 : std::min(path.find('/'), path.size());
    groups.push_back({path.substr(0, end), version2 ? "/" + path : path.substr(end)});
  }
  for (const CgroupPlace& place : own) {
    // As under version 2, where slurmstepd itself is in the job's groups.
    if (const auto directory = job_directory(place.path)) groups.push_back({hierarchy_of(place), *directory});
  }
  return groups;
}

std::optional<std::vector<CgroupPlace>> places_in_job(const std::vector<CgroupPlace>& places,
                                                      const std::vector<CgroupPlace>& groups, uint32_t job) {
  std::vector<CgroupPlace> inside;
  for (const CgroupPlace& place : places) {
    const auto same = [&place](const CgroupPlace& group) { return group.controllers == hierarchy_of(place); };
    const auto holds = [&](const CgroupPlace& group) { return same(group) && is_below(place.path, group.path); };
    if (std::any_of(groups.begin(), groups.end(), holds)) {
      inside.push_back(place);
    } else if (std::any_of(groups.begin(), groups.end(), same)) {
      return std::nullopt;
    } else if (const size_t at = place.path.find("/job_"); at != std::string::npos) {
      const std::string name = place.path.substr(at + 1, place.path.find('/', at + 1) - at - 1);
      if (name != "job_" + std::to_string(job)) return std::nullopt;
    }
  }
  return inside;
}

std::vector<CgroupPlace> places_left(pid_t pid, std::vector<CgroupPlace> places) {
  const auto mine = cgroups_of(pid);
  std::erase_if(places, [&mine](const CgroupPlace& place) {
    return std::any_of(mine.begin(), mine.end(), [&place](const CgroupPlace& other) {
      return other.controllers == place.controllers && other.path == place.path;
    });
  });
  return places;
}

void join_cgroups(pid_t number, const std::vector<CgroupPlace>& places) {
  for (const CgroupPlace& place : places) {
    if (!write_text(place.directory() + "/cgroup.procs", std::to_string(number)))
      throw_errno("cannot put process {} into the step's cgroup {}", number, place.directory());
  }
}

namespace {

// The step's own place in the hierarchy that proctrack/cgroup uses; none without proctrack/cgroup.
std::optional<CgroupPlace> step_place(pid_t task) {
  for (CgroupPlace place : cgroups_of(task)) {
    const size_t step = place.path.find("/step_");
    if ((place.controllers != "freezer" && !place.controllers.empty()) || step == std::string::npos) continue;
    place.path.resize(std::min(place.path.find('/', step + 1), place.path.size()));
    return place;
  }
  return std::nullopt;
}

}  // namespace

Signalled signalled_by_slurm(pid_t task, const std::string& slurm_conf_directory) {
  if (!step_place(task)) return Signalled::kTree;
  std::ifstream file(slurm_conf_directory + "/cgroup.conf");
  static const std::regex yes(R"(^\s*SignalChildrenProcesses\s*=\s*(yes|true|1)\b.*)", std::regex::icase);
  for (std::string line; std::getline(file, line);) {
    if (std::regex_match(line, yes)) return Signalled::kCgroup;
  }
  return Signalled::kTask;
}

std::vector<pid_t> step_processes(pid_t task) {
  const auto place = step_place(task);
  if (!place) return {};
  const std::set<pid_t> pids = processes_in({place->directory()});
  return {pids.begin(), pids.end()};
}

std::vector<pid_t> batch_processes(pid_t task) {
  auto place = step_place(task);
  if (!place) return {};
  place->path.replace(place->path.rfind('/'), std::string::npos, "/step_batch");
  const std::set<pid_t> pids = processes_in({place->directory()});
  return {pids.begin(), pids.end()};
}

namespace {

std::string first_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// Its own group or one above: Slurm freezes the step's.
bool is_frozen(pid_t pid) {
  for (CgroupPlace place : cgroups_of(pid)) {
    if (place.controllers != "freezer" && !place.controllers.empty()) continue;
    const bool version1 = !place.controllers.empty();
    for (; place.path.size() > 1; place.path.resize(place.path.rfind('/'))) {
      const std::string word = first_word(place.directory() + (version1 ? "/freezer.state" : "/cgroup.freeze"));
      if (version1 ? word == "FROZEN" || word == "FREEZING" : word == "1") return true;
    }
  }
  return false;
}

}  // namespace

Suspension suspension_of(const std::vector<pid_t>& tasks) {
  size_t alive = 0, stopped = 0;
  for (const pid_t pid : tasks) {
    try {
      const char state = ProcStat::read(pid).state;
      if (state == 'Z' || state == 'X') continue;
      if (is_frozen(pid)) return Suspension::kFrozen;
      alive++;
      if (state == 'T') stopped++;
    } catch (const Error&) {
      continue;  // it has ended
    }
  }
  return alive > 0 && stopped == alive ? Suspension::kStopped : Suspension::kNone;
}

void add_step_cgroups(pid_t task, StepCgroups& cgroups) {
  if (const auto place = task > 0 ? step_place(task) : std::nullopt) {
    cgroups.directory = place->directory();
    cgroups.freezer = !place->controllers.empty();
  }
  if (cgroups.directory.empty()) return;
  const auto add = [&cgroups](const fs::path& directory) {
    struct stat status {};
    if (::stat(directory.c_str(), &status) == 0) cgroups.inodes.insert(status.st_ino);
  };
  std::error_code ignored;
  add(cgroups.directory);
  for (const auto& entry : fs::recursive_directory_iterator(cgroups.directory, ignored)) {
    if (entry.is_directory(ignored)) add(entry.path());
  }
}

// By descriptors, and when the numbers are in the cgroups still: one may have been given to somebody else.
static void kill_those(const std::set<pid_t>& pids, const std::vector<std::string>& directories) {
  std::map<pid_t, UniqueFd> processes;
  for (const pid_t pid : pids) processes.emplace(pid, static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  for (const pid_t pid : processes_in(directories)) {
    const auto process = processes.find(pid);
    if (process != processes.end() && process->second)
      ::syscall(SYS_pidfd_send_signal, process->second.get(), SIGKILL, nullptr, 0);
  }
}

size_t kill_job_processes(const std::string& node, uid_t uid, const JobName& job) {
  const auto directories = job_directories(kRoot, node, uid, job);
  std::set<pid_t> all;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (true) {
    const std::set<pid_t> left = processes_in(directories);
    if (left.empty() || std::chrono::steady_clock::now() > deadline) break;
    thaw(directories);
    kill_those(left, directories);
    all.insert(left.begin(), left.end());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return all.size();
}

namespace {

// slurmstepd makes and removes groups with a lock on the top of the hierarchy, where its own directory lies, or with
// version 2 on its scope. Empty when somebody else has it.
UniqueFd lock_hierarchy(const fs::path& job_directory) {
  const fs::path parent = job_directory.parent_path();
  const bool scope = parent.extension() == ".scope";  // version 2
  const fs::path top = scope ? parent : fs::path(kRoot) / *job_directory.lexically_relative(kRoot).begin();
  UniqueFd file(::open(top.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (file && ::flock(file.get(), LOCK_EX | LOCK_NB) != 0) return {};
  return file;
}

// Deepest first; false when something is in one of them. The kernel refuses to remove a group that is in use.
bool remove_tree(const fs::path& directory) {
  std::error_code ignored;
  bool empty = true;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) {
    if (entry.is_directory(ignored)) empty = remove_tree(entry.path()) && empty;
  }
  return empty && (::rmdir(directory.c_str()) == 0 || errno == ENOENT);
}

}  // namespace

void remove_job_cgroups(const std::string& node, uid_t uid, const JobName& job) {
  // The lock may be taken, and a process on its way out stays in its groups for a moment.
  for (int tries = 0; tries < 100; ++tries) {
    bool gone = true;
    for (const std::string& directory : job_directories(kRoot, node, uid, job)) {
      const UniqueFd lock = lock_hierarchy(directory);
      gone = lock && remove_tree(directory) && gone;
    }
    if (gone) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

namespace {

bool serves(pid_t stepd, const std::string& node, const std::string& pin) {
  struct stat pinned {
  }, own{};
  struct statfs kind {};
  constexpr long kNsfsMagic = 0x6e736673;
  if (::statfs(pin.c_str(), &kind) == 0 && kind.f_type == kNsfsMagic && ::stat(pin.c_str(), &pinned) == 0 &&
      ::stat(fmt::format("/proc/{}/ns/ipc", stepd).c_str(), &own) == 0) {
    return pinned.st_ino == own.st_ino;
  }
  try {
    for (const CgroupPlace& place : cgroups_of(stepd)) {
      if (place.path.starts_with("/slurm_")) return place.path.starts_with("/slurm_" + node + "/");
      if (place.path.find("_slurmstepd.scope/") != std::string::npos) {
        return place.path.find("/" + node + "_slurmstepd.scope/") != std::string::npos;
      }
    }
  } catch (const Error&) {
    return false;  // it has ended
  }
  return true;
}

}  // namespace

bool job_has_slurmstepd(const std::string& node, uint32_t job, const std::string& pin) {
  const std::string title = fmt::format("slurmstepd: [{}.", job);
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto pid = static_cast<pid_t>(std::stol(name));
    // First what the kernel says of every process at once: a process of a user can make its command line wait.
    if (!is_slurmstepd(pid)) continue;
    std::ifstream file(entry.path() / "cmdline");
    std::string line;
    if (std::getline(file, line, '\0') && line.starts_with(title) && serves(pid, node, pin)) return true;
  }
  return false;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/control_groups.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <sstream>
#include <string_view>
#include <utility>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/printable.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"

namespace icp {
namespace {

constexpr size_t kMostGroups = 256, kMostSettings = 128, kMostValue = 4096;
constexpr int kMostDepth = 8;
constexpr std::string_view kType = "cgroup.type", kSubtree = "cgroup.subtree_control";
constexpr const char* kNoLogin = "4294967295";

std::string read_text(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  std::string text(kMostValue, '\0');
  const ssize_t got = file ? ::read(file.get(), text.data(), text.size()) : -1;
  text.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return text;
}

// Line by line: files that list several things take one at a time. 0, or the errno of the last line refused.
int write_text(const std::string& path, const std::string& text) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file) return errno;
  int error = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    if (!line.empty() && ::write(file.get(), line.data(), line.size()) < 0) error = errno;
  return error;
}

bool is_control_group(const std::string& directory) {
  struct statfs system {};
  return ::statfs(directory.c_str(), &system) == 0 &&
         (system.f_type == CGROUP_SUPER_MAGIC || system.f_type == CGROUP2_SUPER_MAGIC);
}

std::string parent_of(const std::string& path) { return path.substr(0, std::max<size_t>(path.rfind('/'), 1)); }
bool plain_path(const std::string& path) {
  return path.starts_with('/') && path.find("/../") == std::string::npos && !path.ends_with("/..") &&
         path.find('\0') == std::string::npos;
}

std::string name_of(const std::string& hierarchy, const std::string& path) {
  return printable(hierarchy.empty() ? path : hierarchy + ":" + path);
}

template <typename Each>
void for_each_entry(const std::string& directory, Each each) {
  const std::unique_ptr<DIR, int (*)(DIR*)> list(::opendir(directory.c_str()), ::closedir);
  while (const dirent* entry = list ? ::readdir(list.get()) : nullptr)
    if (entry->d_name[0] != '.') each(std::string(entry->d_name), entry->d_type == DT_DIR);
}

// Files that hold no setting: members, events, what is counted, and what freezes or kills.
bool is_setting(const std::string& file, mode_t mode) {
  static constexpr std::array<std::string_view, 6> kMembers = {"cgroup.procs",  "cgroup.threads", "tasks",
                                                               "freezer.state", "cgroup.freeze",  "cgroup.kill"};
  static constexpr std::array<std::string_view, 6> kParts = {"usage", "failcnt", "peak", "pressure", "reclaim", "stat"};
  if (file == "devices.list") return true;
  if ((mode & 0600) != 0600 || std::find(kMembers.begin(), kMembers.end(), file) != kMembers.end()) return false;
  return std::none_of(kParts.begin(), kParts.end(),
                      [&](std::string_view part) { return file.find(part) != std::string::npos; });
}

// What a new group's files have: the owner of the group, and the mode of those of this name elsewhere.
bool is_changed(const struct stat& file, const struct stat& directory, const std::string& same_of_parent) {
  static constexpr std::array<mode_t, 4> kUsual = {0444, 0644, 0200, 0222};
  if (file.st_uid != directory.st_uid || file.st_gid != directory.st_gid) return true;
  struct stat other {};
  const mode_t mode = file.st_mode & 07777;
  if (::stat(same_of_parent.c_str(), &other) == 0 && (other.st_mode & 07777) == mode) return false;
  return std::find(kUsual.begin(), kUsual.end(), mode) == kUsual.end() || other.st_ino != 0;
}

void read_settings(const std::string& directory, pb::ControlGroup& group) {
  struct stat whole {};
  if (::stat(directory.c_str(), &whole) != 0) return;
  for_each_entry(directory, [&](const std::string& file, bool is_directory) {
    struct stat status {};
    if (is_directory || static_cast<size_t>(group.settings_size()) >= kMostSettings ||
        ::stat((directory + "/" + file).c_str(), &status) != 0)
      return;
    std::string value = is_setting(file, status.st_mode) ? read_text(directory + "/" + file) : std::string();
    if (value.size() >= kMostValue) value.clear();
    const bool changed = is_changed(status, whole, parent_of(directory) + "/" + file);
    if (value.empty() && !changed) return;
    pb::ControlGroupSetting& setting = *group.add_settings();
    setting.set_file(file);
    setting.set_value(std::move(value));
    if (!changed) return;
    setting.set_mode(status.st_mode & 07777);
    setting.set_uid(status.st_uid);
    setting.set_gid(status.st_gid);
  });
}

bool is_file_of_group(const pb::ControlGroupSetting& setting) {
  return !setting.file().empty() && setting.file().find('/') == std::string::npos;
}

// "cpu memory" is written as "+cpu +memory"; a list of devices as what is allowed after all has been denied.
int write_setting(const std::string& directory, const pb::ControlGroupSetting& setting) {
  const std::string path = directory + "/" + setting.file();
  if (setting.file() == "devices.list") {
    const int error = write_text(directory + "/devices.deny", "a");
    return error != 0 ? error : write_text(directory + "/devices.allow", setting.value());
  }
  if (setting.file() != kSubtree) return write_text(path, setting.value());
  std::istringstream words(setting.value());
  int error = 0;
  for (std::string word; words >> word;)
    if (const int failed = write_text(path, "+" + word); failed != 0) error = failed;
  return error;
}

// Some depend on others: those that fail are tried once more. Returns the names of those that could not be set.
std::string write_settings(const std::string& directory, const pb::ControlGroup& group) {
  std::vector<const pb::ControlGroupSetting*> left;
  for (const pb::ControlGroupSetting& setting : group.settings()) {
    const bool threaded = setting.file() == kType && setting.value().starts_with("threaded");
    const bool wanted = is_file_of_group(setting) && !setting.value().empty();
    if (wanted && (setting.file() != kType || threaded)) left.push_back(&setting);
  }
  std::stable_partition(left.begin(), left.end(), [](const auto* setting) { return setting->file() == kType; });
  for (int pass = 0; pass < 2; ++pass)
    std::erase_if(left, [&](const pb::ControlGroupSetting* setting) {
      return read_text(directory + "/" + setting->file()) == setting->value() ||
             write_setting(directory, *setting) == 0;
    });
  std::string names;
  for (const pb::ControlGroupSetting* setting : left) names += (names.empty() ? "" : ", ") + printable(setting->file());
  return names;
}

// Returns the names of the files that keep another mode or owner.
std::string write_modes(const std::string& directory, const pb::ControlGroup& group) {
  std::string names;
  for (const pb::ControlGroupSetting& setting : group.settings()) {
    if (!setting.has_mode() || !is_file_of_group(setting)) continue;
    const std::string path = directory + "/" + setting.file();
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    const bool same_owner = status.st_uid == setting.uid() && status.st_gid == setting.gid();
    // The owner last: who is not root may not change the mode any more after that.
    const bool done = ::chmod(path.c_str(), setting.mode() & 0777) == 0 &&
                      (same_owner || ::lchown(path.c_str(), setting.uid(), setting.gid()) == 0);
    if (!done) names += (names.empty() ? "" : ", ") + printable(setting.file());
  }
  return names;
}

std::string own_login_uid(pid_t pid) {
  try {
    return read_proc(pid, "loginuid");
  } catch (const Error&) {
    return {};  // a kernel without auditing, or the process has ended
  }
}

}  // namespace

GroupPaths parse_groups(const std::string& text) {
  GroupPaths paths;
  for (CgroupEntry& entry : CgroupEntry::parse(text)) paths[entry.controllers] = std::move(entry.path);
  return paths;
}

GroupPaths groups_of(pid_t pid) {
  try {
    return parse_groups(read_proc(pid, "cgroup"));
  } catch (const Error&) {
    return {};
  }
}

GroupMounts::GroupMounts() {
  for (MountEntry& entry : MountEntry::read(::getpid())) {
    if (entry.type != "cgroup" && entry.type != "cgroup2") continue;
    Mount mount{{}, std::move(entry.root), std::move(entry.point)};
    std::istringstream words(entry.options);
    for (std::string word; entry.type == "cgroup" && std::getline(words, word, ',');) mount.names.insert(word);
    mounts_.push_back(std::move(mount));
  }
}

std::string GroupMounts::directory(const std::string& hierarchy, const std::string& path) const {
  for (const Mount& mount : mounts_) {
    std::istringstream words(hierarchy);
    bool same = hierarchy.empty() == mount.names.empty();
    for (std::string word; same && std::getline(words, word, ',');) same = mount.names.contains(word);
    if (!same || !is_within(path, mount.root) || !plain_path(path)) continue;
    return moved_path(path, mount.root, mount.point);
  }
  return {};
}

// ---- capture --------------------------------------------------------------------------------------------------------

void ControlGroups::add_base(GroupPaths base) {
  if (!base.empty()) bases_.push_back(std::move(base));
}

// The longest of the job's that it is within. A unit of systemd is its manager's, and as good as the job's.
std::string ControlGroups::base_of(const std::string& hierarchy, const std::string& path) const {
  std::string best;
  for (const GroupPaths& base : bases_) {
    const auto found = base.find(hierarchy);
    if (found != base.end() && is_within(path, found->second) && found->second.size() > best.size())
      best = found->second;
  }
  for (const std::string_view unit : {".scope", ".service"}) {
    for (size_t at = path.find(unit); at != std::string::npos; at = path.find(unit, at + 1)) {
      const size_t end = at + unit.size();
      if ((end == path.size() || path[end] == '/') && end > best.size()) best = path.substr(0, end);
    }
  }
  return best;
}

uint32_t ControlGroups::add(const std::string& hierarchy, const std::string& path, const std::string& base,
                            const std::string& directory) {
  const std::string parent = parent_of(path);
  const bool top = parent == "/" || parent == base || groups_.size() >= kMostGroups;
  if (!top && !known_.contains({hierarchy, parent}))
    known_[{hierarchy, parent}] = add(hierarchy, parent, base, parent_of(directory));
  pb::ControlGroup group;
  group.set_id(static_cast<uint32_t>(groups_.size() + 1));
  group.set_hierarchy(hierarchy);
  group.set_path(path);
  group.set_base(base);
  struct stat status {};
  if (::stat(directory.c_str(), &status) == 0) {
    group.set_mode(status.st_mode & 07777);
    group.set_uid(status.st_uid);
    group.set_gid(status.st_gid);
  }
  read_settings(directory, group);
  groups_.push_back(std::move(group));
  return groups_.back().id();
}

// Those without processes, too.
void ControlGroups::add_below(const pb::ControlGroup& group, const std::string& directory, int depth) {
  const std::string hierarchy = group.hierarchy(), path = group.path(), base = group.base();
  for_each_entry(directory, [&](const std::string& name, bool is_directory) {
    const std::pair key(hierarchy, path + "/" + name);
    if (!is_directory || groups_.size() >= kMostGroups || known_.contains(key)) return;
    known_[key] = add(hierarchy, key.second, base, directory + "/" + name);
    if (depth < kMostDepth) add_below(groups_[*known_[key] - 1], directory + "/" + name, depth + 1);
  });
}

std::optional<uint32_t> ControlGroups::id_of(const ProcessRef& process, const std::string& hierarchy,
                                             const std::string& path) {
  const auto known = known_.find({hierarchy, path});
  if (known != known_.end()) return known->second;
  const std::string base = base_of(hierarchy, path);
  if (path == "/" || path == base) return {};
  if (!mounts_) mounts_.emplace();
  const std::string directory = mounts_->directory(hierarchy, path);
  std::string why;
  if (directory.empty())
    why = "its hierarchy is not mounted here";
  else if (::faccessat(AT_FDCWD, (directory + "/cgroup.procs").c_str(), W_OK, AT_EACCESS) != 0)
    why = errno_text(errno);
  else if (groups_.size() >= kMostGroups)
    why = "there are too many";
  if (why.empty()) {
    const uint32_t id = add(hierarchy, path, base, directory);
    known_[{hierarchy, path}] = id;
    add_below(groups_[id - 1], directory, 0);
    return id;
  }
  if (told_.insert(hierarchy + ":" + path).second)
    spdlog::warn(
        "process {} ({}) is in control group {}, which a restart cannot put it into again ({}): it would be in that of "
        "the job",
        process.pid, printable(process.comm), name_of(hierarchy, path), why);
  known_[{hierarchy, path}] = std::nullopt;
  return {};
}

std::vector<uint32_t> ControlGroups::ids_of(const ProcessRef& process, const std::string& text) {
  const auto known = known_texts_.find(text);
  if (known != known_texts_.end()) return known->second;
  std::vector<uint32_t> ids;
  for (const auto& [hierarchy, path] : parse_groups(text))
    if (const auto id = id_of(process, hierarchy, path)) ids.push_back(*id);
  return known_texts_[text] = ids;
}

void ControlGroups::note(const ProcessRef& process) {
  Placed placed;
  placed.start_time = process.start_time;
  const std::string text = read_proc(process.pid, "cgroup");
  placed.groups = ids_of(process, text);
  const std::vector<int> threads = list_proc_numbers(process.pid, "task");
  for (const int tid : threads) {
    if (tid == process.pid || threads.size() == 1) continue;
    try {
      const std::string own = read_proc(process.pid, fmt::format("task/{}/cgroup", tid));
      if (own != text) placed.threads[tid] = ids_of(process, own);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
  if (!own_login_uid_) own_login_uid_ = own_login_uid(::getpid());
  const std::string login = own_login_uid(process.pid);
  if (!login.empty() && login != kNoLogin && login != *own_login_uid_)
    placed.login_uid = static_cast<uint32_t>(std::stoul(login));
  placed_[process.pid] = std::move(placed);
}

void ControlGroups::note(const std::vector<ProcessRef>& processes) {
  // Settings, and what is below, may have changed since.
  known_texts_.clear();
  known_.clear();
  groups_.clear();
  placed_.clear();
  mounts_.reset();
  for (const ProcessRef& process : processes) {
    try {
      if (!process.zombie) note(process);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
}

void ControlGroups::capture(const std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states,
                            pb::Capsule& capsule) {
  for (size_t i = 0; i < processes.size(); ++i) {
    const StoppedProcess& process = processes[i];
    if (process.ref.zombie) continue;
    if (const auto known = placed_.find(process.ref.pid);
        known == placed_.end() || known->second.start_time != process.ref.start_time)
      note(process.ref);
    const Placed& placed = placed_.at(process.ref.pid);
    if (placed.nothing()) continue;
    for (const uint32_t id : placed.groups) states[i]->add_control_groups(id);
    if (placed.login_uid) states[i]->set_login_uid(*placed.login_uid);
    for (size_t place = 1; place < process.threads.size(); ++place) {
      const auto own = placed.threads.find(process.threads[place].tid());
      if (own == placed.threads.end()) continue;
      pb::Thread& thread = *states[i]->mutable_threads(static_cast<int>(place));
      thread.set_own_control_groups(true);
      for (const uint32_t id : own->second) thread.add_control_groups(id);
    }
  }
  for (const pb::ControlGroup& group : groups_) *capsule.add_control_groups() = group;
}

// ---- restore --------------------------------------------------------------------------------------------------------

ControlGroupRestore::ControlGroupRestore(const pb::Capsule& capsule, pid_t here, bool dry) : dry_(dry) {
  const GroupPaths place = capsule.control_groups_size() > 0 ? groups_of(here) : GroupPaths();
  for (const pb::ControlGroup& group : capsule.control_groups()) {
    if (!plain_path(group.path())) throw_error(ErrorKind::kImage, "a control group has no usable path");
    groups_[group.id()] = &group;
    const std::string path = target(group, place);
    if (!path.empty() && !dry_) make(group, path);
  }
}

ControlGroupRestore::~ControlGroupRestore() {
  for (auto made = made_.rbegin(); made != made_.rend(); ++made) ::rmdir(made->directory.c_str());
}

// Not when they are made: with the files' own modes the groups might be closed to who puts processes into them.
void ControlGroupRestore::keep() {
  for (const Made& made : made_) {
    const std::string missing = write_modes(made.directory, *made.group);
    if (!missing.empty())
      spdlog::warn("control group {} is made again, but for the mode or owner of {}",
                   name_of(made.group->hierarchy(), made.group->path()), missing);
  }
  made_.clear();
}

// Empty: there is no such place here.
std::string ControlGroupRestore::target(const pb::ControlGroup& group, const GroupPaths& here) const {
  if (group.base().empty()) return group.path();
  const auto own = here.find(group.hierarchy());
  if (own == here.end() || !is_within(group.path(), group.base())) return {};
  return moved_path(group.path(), group.base(), own->second);
}

// Its parent has been made before. A unit of systemd's is not ours to make.
bool ControlGroupRestore::make(const pb::ControlGroup& group, const std::string& path) {
  const std::string directory = mounts_.directory(group.hierarchy(), path);
  if (directory.empty()) return false;
  if (::access(directory.c_str(), F_OK) == 0) return is_control_group(directory);
  if (!is_control_group(parent_of(directory)) || path.ends_with(".scope") || path.ends_with(".service")) return false;
  if (::mkdir(directory.c_str(), group.has_mode() ? group.mode() & 0777 : 0755) != 0) return false;
  made_.push_back({directory, &group});
  if (group.has_mode()) ::chmod(directory.c_str(), group.mode() & 0777);  // whatever the umask
  if (group.has_mode() && ::geteuid() == 0) static_cast<void>(!::chown(directory.c_str(), group.uid(), group.gid()));
  const std::string missing = write_settings(directory, group);
  spdlog::info("control group {} was gone: made again", name_of(group.hierarchy(), path));
  if (!missing.empty())
    spdlog::warn("control group {} was gone, and is made again without what could not be set: {}",
                 name_of(group.hierarchy(), path), missing);
  return true;
}

bool ControlGroupRestore::join(uint32_t id, const GroupPaths& here, pid_t pid, bool thread, const std::string& name) {
  const auto found = groups_.find(id);
  if (found == groups_.end()) throw_error(ErrorKind::kImage, "{} is in control group {}, which is not there", name, id);
  const pb::ControlGroup& group = *found->second;
  const std::string path = target(group, here);
  int error = ENOENT;
  if (!path.empty() && make(group, path)) {
    const std::string directory = mounts_.directory(group.hierarchy(), path);
    const char* const file = !thread ? "cgroup.procs" : group.hierarchy().empty() ? "cgroup.threads" : "tasks";
    error = write_text(directory + "/" + file, std::to_string(pid));
  }
  if (error == 0) return true;
  spdlog::warn("{} is not in control group {} any more ({}): it is in that of the job", name,
               name_of(group.hierarchy(), group.path()), errno_text(error));
  return false;
}

void ControlGroupRestore::place(const pb::Process& state, pid_t pid) {
  if (dry_) return;
  const auto of_threads = [](const pb::Thread& thread) { return thread.own_control_groups(); };
  if (state.control_groups_size() == 0 && std::none_of(state.threads().begin(), state.threads().end(), of_threads))
    return;
  const GroupPaths& here = places_[state.pid()] = groups_of(pid);
  for (const uint32_t id : state.control_groups())
    join(id, here, pid, false, fmt::format("process {} ({})", state.pid(), printable(state.comm())));
}

// What its process is in and it is not, is where the job is.
void ControlGroupRestore::place_thread(const pb::Process& process, const pb::Thread& state, pid_t tid) {
  if (dry_ || !state.own_control_groups()) return;
  const GroupPaths& here = places_[process.pid()];
  const std::string name = fmt::format("thread {} of process {}", state.tid(), process.pid());
  std::set<std::string> own;
  for (const uint32_t id : state.control_groups()) {
    join(id, here, tid, true, name);
    if (const auto group = groups_.find(id); group != groups_.end()) own.insert(group->second->hierarchy());
  }
  for (const uint32_t id : process.control_groups()) {
    const auto group = groups_.find(id);
    if (group == groups_.end() || own.contains(group->second->hierarchy())) continue;
    const auto place = here.find(group->second->hierarchy());
    if (place == here.end()) continue;
    const std::string directory = mounts_.directory(place->first, place->second);
    if (!directory.empty())
      write_text(directory + (place->first.empty() ? "/cgroup.threads" : "/tasks"), std::to_string(tid));
  }
}

void restore_login_uid(RemoteProcess& remote, const pb::Process& state) {
  if (!state.has_login_uid()) return;
  const std::string text = std::to_string(state.login_uid());
  if (own_login_uid(remote.pid()) == text) return;
  remote.reset_scratch();
  const RemoteAddr path = remote.stage_string("/proc/self/loginuid"), value = remote.stage_string(text);
  const int64_t file = remote.syscall(SYS_openat, {static_cast<uint64_t>(AT_FDCWD), path.value, O_WRONLY | O_CLOEXEC});
  const int64_t done =
      file < 0 ? file : remote.syscall(SYS_write, {static_cast<uint64_t>(file), value.value, text.size()});
  if (file >= 0) remote.call("close", SYS_close, {static_cast<uint64_t>(file)});
  if (done < 0)
    spdlog::warn("process {} had login uid {}, which cannot be set here: {}", state.pid(), text,
                 errno_text(static_cast<int>(-done)));
}

}  // namespace icp

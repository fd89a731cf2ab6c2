// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/image_choice.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/chrono.h>
#include <pwd.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <map>
#include <set>

#include "engine/base/error.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_dir.h"

namespace icp {
namespace {

constexpr const char* kCompleted = "/completed";
constexpr const char* kCutPart = "cut.";              // and the name of a launched step's capsule
constexpr const char* kCompletedPart = "completed.";  // and the name of a capsule, for one of several
constexpr const char* kVacated = "/vacated";
constexpr const char* kEnd = "/end";  // when the processes ended that have run since the last version: ms of Unix time

bool has_mark(const std::string& image, const char* mark, const Identity& identity) {
  const FsIdentity as_user(identity);
  struct stat facts {};
  return ::lstat((image + mark).c_str(), &facts) == 0;
}

// What a mark says; nothing when there is none.
std::optional<std::string> read_mark(const std::string& image, const char* mark, const Identity& identity) {
  const FsIdentity as_user(identity);
  const UniqueFd file(::open((image + mark).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file) return std::nullopt;
  char text[4096];
  const ssize_t got = ::read(file.get(), text, sizeof text);
  return std::string(text, static_cast<size_t>(std::max<ssize_t>(got, 0)));
}

void set_mark(const std::string& image, const char* mark, const Identity& identity, const std::string& text = {}) {
  const FsIdentity as_user(identity);
  const UniqueFd file(
      ::open((image + mark).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!file && errno == ENOENT) return;  // no version was ever taken
  if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    spdlog::warn("cannot make {}{}: {}", image, mark, errno_text(errno));
}

void remove_mark(const std::string& image, const char* mark, const Identity& identity) {
  const FsIdentity as_user(identity);
  ::unlink((image + mark).c_str());
}

std::string completed_mark(const std::string& capsule) {
  return capsule.empty() ? kCompleted : fmt::format("/{}{}", kCompletedPart, capsule);
}

std::string user_name(uid_t uid) {
  passwd entry{};
  passwd* found = nullptr;
  char buffer[4096];
  if (::getpwuid_r(uid, &entry, buffer, sizeof buffer, &found) == 0 && found != nullptr) return entry.pw_name;
  return std::to_string(uid);
}

std::string below(const std::string& cwd, const std::string& path) {
  return path.starts_with('/') ? path : cwd + "/" + path;
}

// Versions of which every node's part can be read, latest first; of the others, why not. Throws Error when the image
// cannot be opened.
std::vector<uint32_t> good_versions(const std::string& image, const Identity& identity,
                                    std::map<uint32_t, std::string>& damaged) {
  std::map<uint32_t, bool> good;
  for (const std::string& node : ImageDir::nodes_of(image, identity)) {
    for (const VersionInfo& info : ImageDir::open(image, identity, node).versions()) {
      const bool first = !good.contains(info.version);
      good[info.version] = info.error.empty() && (first || good[info.version]);
      if (info.error.empty()) continue;
      spdlog::warn("{}: version {}: {}", image, info.version, info.error);
      damaged[info.version] = info.error;
    }
  }
  std::vector<uint32_t> versions;
  for (const auto& [version, whole] : good) {
    if (whole) versions.push_back(version);
  }
  std::reverse(versions.begin(), versions.end());
  return versions;
}

// Names in a directory, read with the user's rights. Throws Error.
std::vector<std::string> names_in(const std::string& directory, const Identity& identity) {
  const FsIdentity as_user(identity);
  DIR* const stream = ::opendir(directory.c_str());
  if (stream == nullptr) throw_errno("cannot open {}", directory);
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(stream)) names.emplace_back(entry->d_name);
  ::closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

bool is_version(const std::string& name) {
  return name.size() == 7 && name[0] == 'v' && name.find_first_not_of("0123456789", 1) == std::string::npos;
}

// "12.0", "12.batch": the job and the step of an image, by its name.
bool split_name(const std::string& name, std::string& job, std::string& step) {
  const size_t dot = name.find('.');
  if (dot == std::string::npos || dot == 0) return false;
  job = name.substr(0, dot);
  step = name.substr(dot + 1);
  const auto number = [](const std::string& text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  };
  return number(job) && (number(step) || step == "batch");
}

// `version` 0: the latest one that is whole.
StartPlan restart_from(const std::string& image, const Identity& identity, uint32_t version = 0) {
  StartPlan plan;
  plan.image = image;
  std::map<uint32_t, std::string> damaged;
  plan.versions = good_versions(image, identity, damaged);
  plan.kind = plan.versions.empty() ? StartPlan::kFail : StartPlan::kRestart;
  if (plan.versions.empty()) {
    plan.text = fmt::format("{} holds no complete version", image);
    plan.lost = !damaged.empty();
    if (plan.lost) plan.text += fmt::format(" (version {}: {})", damaged.rbegin()->first, damaged.rbegin()->second);
  }
  if (version != 0 && !plan.versions.empty()) {
    plan.one_version = true;
    if (std::find(plan.versions.begin(), plan.versions.end(), version) == plan.versions.end()) {
      plan.kind = StartPlan::kFail;
      plan.text =
          fmt::format("{} holds no complete version {}; the latest one is {}", image, version, plan.versions[0]);
    }
    plan.versions = {version};
  } else if (!plan.versions.empty()) {
    for (auto at = damaged.rbegin(); at != damaged.rend() && at->first > plan.versions[0]; ++at)
      plan.damaged.push_back(fmt::format("version {}: {}", at->first, at->second));
  }
  return plan;
}

// Takes ":7" or "/v000007" off the end of a directory's name; 0: there is none.
uint32_t take_version(std::string& directory, const Identity& identity) {
  constexpr size_t kMostDigits = 6;
  while (directory.size() > 1 && directory.ends_with('/')) directory.pop_back();
  const size_t cut = directory.find_last_of(":/");
  if (cut == std::string::npos || cut == 0) return 0;
  std::string number = directory.substr(cut + 1);
  if (directory[cut] == '/') {
    if (!is_version(number)) return 0;
    number.erase(0, 1);
  } else {
    const FsIdentity as_user(identity);
    struct stat facts {};
    if (::lstat(directory.c_str(), &facts) == 0) return 0;  // a name with a colon
  }
  if (number.empty() || number.size() > kMostDigits || number.find_first_not_of("0123456789") != std::string::npos)
    return 0;
  directory.resize(cut);
  return static_cast<uint32_t>(std::stoul(number));
}

StartPlan plan_from_directory(const protocol::StepFacts& facts, std::string directory) {
  const Identity identity = identity_of(facts);
  const uint32_t version = take_version(directory, identity);
  const std::string own_step = protocol::step_name(facts.step);
  const std::vector<std::string> names = names_in(directory, identity);
  std::string job, step;
  if (std::any_of(names.begin(), names.end(), is_version)) {
    std::string name = directory;
    while (name.size() > 1 && name.ends_with('/')) name.pop_back();
    name = name.substr(name.rfind('/') + 1);
    // sbatch --restart-dir=.../12.0: meant for the step that the script will run.
    if (facts.step == protocol::kBatchStep && split_name(name, job, step) && step != "batch") return {};
    return restart_from(directory, identity, version);
  }
  std::vector<std::string> same_step, others;
  for (const std::string& name : names) {
    if (!split_name(name, job, step)) continue;
    if (step == own_step && job == std::to_string(facts.job))
      return restart_from(fmt::format("{}/{}", directory, name), identity, version);
    (step == own_step ? same_step : others).push_back(name);
  }
  if (same_step.size() == 1) return restart_from(directory + "/" + same_step[0], identity, version);
  StartPlan plan;
  if (same_step.size() > 1) {
    plan.kind = StartPlan::kFail;
    plan.text = fmt::format("{} holds step {} of several jobs ({}, {}{}); name one of them", directory, own_step,
                            same_step[0], same_step[1], same_step.size() > 2 ? ", ..." : "");
  } else if (others.empty()) {
    plan.kind = StartPlan::kFail;
    plan.text = fmt::format("{} holds no checkpoint; icp list shows the versions of an image", directory);
  } else if (facts.step != protocol::kBatchStep) {
    plan.text = fmt::format("{} holds no checkpoint of step {}", directory, own_step);
  }
  return plan;
}

// The step goes on from what it has saved itself.
StartPlan plan_after_requeue(const protocol::StepFacts& facts, const std::string& own_image) {
  const Identity identity = identity_of(facts);
  if (is_completed(own_image, identity)) return {};
  const std::optional<std::string> vacated = read_mark(own_image, kVacated, identity);
  if (!goes_on_by_itself(facts) && !vacated) return {};
  // An absolute path says that the version was put elsewhere.
  const std::string& image = vacated && vacated->starts_with('/') ? *vacated : own_image;
  try {
    const std::vector<std::string> names = names_in(image, identity);
    if (std::none_of(names.begin(), names.end(), is_version)) return {};
    StartPlan plan = restart_from(image, identity);
    if (plan.kind == StartPlan::kFail) plan.kind = StartPlan::kFresh;
    return plan;
  } catch (const Error& error) {
    if (error.error_number() == ENOENT) return {};  // killed before its first version
    StartPlan plan;
    plan.text = error.what();
    plan.lost = true;
    return plan;
  }
}

}  // namespace

Identity identity_of(const protocol::StepFacts& facts) { return {facts.uid, facts.gid, facts.groups}; }

std::string own_image_path(const protocol::StepFacts& facts, const Config& config, const std::string& cwd) {
  std::string directory = facts.checkpoint_dir.empty() ? config.checkpoint_dir : facts.checkpoint_dir;
  if (facts.checkpoint_dir.empty()) {
    if (const size_t at = directory.find("%u"); at != std::string::npos) {
      directory.replace(at, 2, user_name(facts.uid));
    }
  }
  return image_path_in(directory.empty() ? cwd : below(cwd, directory), facts);
}

std::string image_path_in(const std::string& directory, const protocol::StepFacts& facts) {
  return fmt::format("{}/{}.{}", directory, facts.job, protocol::step_name(protocol::step_of_versions(facts)));
}

StartPlan plan_start(const protocol::StepFacts& facts, const std::string& own_image, const std::string& cwd,
                     uint32_t restarts, bool chosen) {
  if (facts.restart_dir == "none" || (facts.launched != 0 && facts.restart_dir.empty())) return {};
  const Identity identity = identity_of(facts);
  if (restarts > 0 && !chosen && facts.launched == 0) {
    StartPlan plan = plan_after_requeue(facts, own_image);
    if (plan.kind == StartPlan::kRestart || facts.restart_dir.empty()) return plan;
  }
  if (!facts.restart_dir.empty()) {
    try {
      return plan_from_directory(facts, below(cwd, facts.restart_dir));
    } catch (const Error& error) {
      StartPlan plan;
      plan.kind = StartPlan::kFail;
      plan.text = error.what();
      return plan;
    }
  }
  return {};
}

std::pair<uint32_t, uint32_t> highest_versions(const std::string& image, const protocol::StepFacts& facts) {
  try {
    const ImageDir dir = ImageDir::open(image, identity_of(facts), facts.capsule);
    return {dir.highest(), dir.latest().value_or(0)};
  } catch (const Error&) {
    return {0, 0};  // not made yet; what is wrong with it is said when a version is taken
  }
}

void mark_completed(const std::string& image, const protocol::StepFacts& facts) {
  set_mark(image, completed_mark(facts.capsules > 1 ? facts.capsule : "").c_str(), identity_of(facts));
}

void mark_cut(const std::string& image, const std::string& capsule, const Identity& identity) {
  set_mark(image, fmt::format("/{}{}", kCutPart, capsule).c_str(), identity);
}

bool is_completed(const std::string& image, const Identity& identity) {
  const bool marked = has_mark(image, kCompleted, identity);
  try {
    if (marked) {
      const auto names = names_in(image, identity);
      return std::none_of(names.begin(), names.end(), [](const auto& name) { return name.starts_with(kCutPart); });
    }
    std::set<std::string> ended;
    uint32_t latest = 0;
    for (const std::string& name : names_in(image, identity)) {
      if (name.starts_with(kCompletedPart)) ended.insert(name.substr(std::string_view(kCompletedPart).size()));
      if (is_version(name)) latest = std::max(latest, static_cast<uint32_t>(std::stoul(name.substr(1))));
    }
    if (ended.empty() || latest == 0) return false;
    for (const std::string& node : ImageDir::nodes_of(image, identity)) {
      if (!ended.contains(node) && ImageDir::open(image, identity, node).has_version(latest)) return false;
    }
    return true;
  } catch (const Error&) {
    return marked;  // there is no image, or none that could be restarted from
  }
}

void unmark_completed(const std::string& image, const Identity& identity) {
  remove_mark(image, kCompleted, identity);
  try {
    for (const std::string& name : names_in(image, identity))
      if (name.starts_with(kCompletedPart) || name.starts_with(kCutPart))
        remove_mark(image, ("/" + name).c_str(), identity);
  } catch (const Error&) {
    // There is no image yet.
  }
}

void mark_vacated(const std::string& image, const Identity& identity, const std::string& where) {
  if (where == image) return set_mark(image, kVacated, identity);
  {
    const FsIdentity as_user(identity);
    ::mkdir(image.c_str(), 0700);  // it need not have a version of its own
  }
  set_mark(image, kVacated, identity, where);
}
void unmark_vacated(const std::string& image, const Identity& identity) { remove_mark(image, kVacated, identity); }

void mark_end(const std::string& image, const Identity& identity, uint64_t unix_ms) {
  set_mark(image, kEnd, identity, std::to_string(unix_ms));
}
void unmark_end(const std::string& image, const Identity& identity) { remove_mark(image, kEnd, identity); }

uint64_t end_of_last_run(const std::string& image, const Identity& identity) {
  return std::strtoull(read_mark(image, kEnd, identity).value_or("").c_str(), nullptr, 10);
}

bool goes_on_by_itself(const protocol::StepFacts& facts) {
  return !facts.interval.empty() || !facts.checkpoint_on.empty();
}

void prepare_image_path(const std::string& image, const Identity& identity, bool keep) {
  const FsIdentity as_user(identity);
  for (size_t slash = image.find('/', 1); slash != std::string::npos; slash = image.find('/', slash + 1)) {
    const std::string directory = image.substr(0, slash);
    struct stat facts {};
    if (::stat(directory.c_str(), &facts) == 0) continue;  // mkdir would complain of a read-only parent first
    if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) throw_errno("cannot make {}", directory);
  }
  struct stat facts {};
  if (keep || ::lstat(image.c_str(), &facts) != 0) return;
  const std::string aside = fmt::format("{}.old-{}", image, std::time(nullptr));
  if (::rename(image.c_str(), aside.c_str()) != 0) throw_errno("cannot move {} to {}", image, aside);
  spdlog::info("{} is of an earlier job with this number: moved to {}", image, aside);
}

}  // namespace icp

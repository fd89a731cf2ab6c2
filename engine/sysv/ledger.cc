// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/ledger.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <memory>
#include <set>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/sysv/ipc_namespace.h"
#include "engine/sysv/ledger_namespace.h"
#include "engine/sysv/run_dir.h"

namespace icp {
namespace {

constexpr int64_t kKeptEnded = 10;  // seconds that this agent remembers processes of that have ended

// Makes the directory of a run of a job, or checks that the one there is ours: nobody else must be able to put a pin or
// a list there. Only we can write to the one that it lies in.
void secure_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) throw_errno("cannot make {}", path);
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) throw_errno("cannot look at {}", path);
  if (!S_ISDIR(info.st_mode) || info.st_uid != ::geteuid() || (info.st_mode & 0022) != 0) {
    throw_error(ErrorKind::kPermission, "{} is not a directory that only its owner, uid {}, can write to", path,
                ::geteuid());
  }
}

// flock on <node>/lock. The file is never removed: two holders of two files of one name would both go on. Given back
// explicitly, since a child forked by another thread meanwhile holds the same lock through its copy.
class NodeLock {
 public:
  explicit NodeLock(const RunDir& node) : fd_(node.open("lock", O_RDWR | O_CREAT)) {
    const std::string path = node.path() + "/lock";
    if (!fd_) throw_errno("cannot open {}", path);
    constexpr int kTries = 1500;  // 30 s
    constexpr timespec kPause{0, 20'000'000};
    for (int i = 0; ::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0; ++i) {
      if (errno != EWOULDBLOCK && errno != EINTR) throw_errno("cannot lock {}", path);
      if (i == kTries) throw_error(ErrorKind::kBusy, "{} has been locked by another process for 30 s", path);
      ::nanosleep(&kPause, nullptr);
    }
  }
  ~NodeLock() { ::flock(fd_.get(), LOCK_UN); }
  NodeLock(const NodeLock&) = delete;
  NodeLock& operator=(const NodeLock&) = delete;

 private:
  UniqueFd fd_;
};

// All job directories of a node, by name; anything else there is left alone.
std::vector<LedgerEntry> list_entries(const RunDir& node) {
  std::vector<LedgerEntry> entries;
  UniqueFd own(::openat(node.fd(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));  // with a position of its own
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(own ? ::fdopendir(own.get()) : nullptr, ::closedir);
  if (!directory) throw_errno("cannot read {}", node.path());
  static_cast<void>(own.release());
  while (const dirent* entry = ::readdir(directory.get())) {
    LedgerEntry found;
    if (std::sscanf(entry->d_name, "job_%u.%u", &found.job, &found.restart) != 2) continue;
    if (fmt::format("job_{}.{}", found.job, found.restart) == entry->d_name) entries.push_back(found);
  }
  std::sort(entries.begin(), entries.end(), [](const LedgerEntry& a, const LedgerEntry& b) {
    return std::pair(a.job, a.restart) < std::pair(b.job, b.restart);
  });
  return entries;
}

bool is_alive(const PidSpan& span) {
  try {
    return ProcStat::read(span.pid).start_time_ticks == span.start_ticks;
  } catch (const Error&) {
    return false;
  }
}

bool in_use(const std::string& directory) {
  if (const UniqueFd pin = open_pinned_namespace(directory + "/ipcns")) {
    return namespace_in_use(ipc_namespace_inode(pin.get()));
  }
  const std::vector<PidSpan> spans = read_pids(directory);
  return std::any_of(spans.begin(), spans.end(), is_alive);
}

// The facts of a ledger of which another run of this function may have made any part before it was killed: the
// directory, then the facts (by rename), then the pin. Until the pin is there no process of the job has started.
LedgerFacts join_or_write_facts(const std::string& directory, const LedgerFacts& wanted) {
  secure_directory(directory);
  if (auto facts = read_facts(directory); facts && facts->boot_id == wanted.boot_id) {
    if (facts->uid != wanted.uid) {
      throw_error(ErrorKind::kPermission, "{} belongs to a job of user {}, not {}", directory, facts->uid, wanted.uid);
    }
    return *facts;
  }
  write_facts(directory, wanted);
  return wanted;
}

// Objects that the job left in the node's own namespace.
void clean_host(const std::string& directory, const LedgerFacts& facts, LedgerCleanup& result) {
  if (facts.boot_id != current_boot_id()) return;  // gone with the reboot
  if (facts.host_namespace != ipc_namespace_inode(current_ipc_namespace().get())) {
    result.problems.emplace_back("the job's objects are in an IPC namespace other than this one; nothing removed");
    return;
  }
  const std::vector<PidSpan> spans = read_pids(directory);
  const std::vector<IpcObject> recorded = read_objects(directory);
  std::vector<IpcObject> objects = list_ipc_objects();
  std::erase_if(objects, [&](const IpcObject& object) {
    // An id that was noted may belong to another object by now: it counts only with all the rest the same.
    const bool noted = object.uid == facts.uid && std::any_of(recorded.begin(), recorded.end(), [&](const auto& old) {
                         return same_object(old, object);
                       });
    return !noted && !made_by(object, facts, spans);
  });
  result.removed = remove_ipc_objects(objects, &result.problems);
}

void clean_objects(const std::string& directory, LedgerCleanup& result) {
  const UniqueFd pin = open_pinned_namespace(directory + "/ipcns");
  if (!pin) {
    const auto facts = read_facts(directory);
    if (facts && facts->mode == IpcMode::kHost) clean_host(directory, *facts, result);
    return;
  }
  if (ipc_namespace_inode(pin.get()) == ipc_namespace_inode(current_ipc_namespace().get())) {
    result.problems.emplace_back("asked from inside the job's own IPC namespace; its objects end with it");
    return;
  }
  // The namespace would take them along when its last process ends. Removed one by one they can be named, and memory
  // of a job whose namespace something still holds comes back now.
  const IpcNamespaceScope scope(pin.get());
  result.removed = remove_ipc_objects(list_ipc_objects(), &result.problems);
}

void remove_directory(const std::string& directory) {
  remove_pin(directory + "/ipcns");
  // The facts last: as long as they are there, another cleanup knows what it sees.
  for (const char* name : {"objects", "pids", "facts.tmp", "facts"}) {
    const std::string path = directory + "/" + name;
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_errno("cannot remove {}", path);
  }
  if (::rmdir(directory.c_str()) != 0 && errno != ENOENT) throw_errno("cannot remove {}", directory);
}

}  // namespace

JobLedger JobLedger::create_or_join(const std::string& base, const std::string& node, uint32_t job, uint32_t restart,
                                    uid_t uid, IpcMode mode) {
  const RunDir run_dir = RunDir::make(base, node);
  const NodeLock lock(run_dir);
  const std::string directory = run_dir.job_directory(job, restart);
  LedgerFacts wanted;
  wanted.job = job;
  wanted.restart = restart;
  wanted.uid = uid;
  wanted.mode = mode;
  wanted.since = ::time(nullptr);
  wanted.host_namespace = ipc_namespace_inode(current_ipc_namespace().get());
  wanted.boot_id = current_boot_id();
  const LedgerFacts facts = join_or_write_facts(directory, wanted);
  if (facts.mode == IpcMode::kPrivate) {
    const std::string pin = directory + "/ipcns";
    const UniqueFd pinned = open_pinned_namespace(pin);
    if (!pinned) {
      make_pinned_namespace(pin);
    } else if (::setns(pinned.get(), CLONE_NEWIPC) != 0) {
      throw_errno("cannot enter the job's IPC namespace {}", pin);
    }
  }
  return {directory, facts};
}

std::optional<JobLedger> JobLedger::open(const std::string& base, const std::string& node, uint32_t job,
                                         uint32_t restart) {
  const auto run_dir = RunDir::find(base, node);
  if (!run_dir) return std::nullopt;
  const std::string directory = run_dir->job_directory(job, restart);
  const auto facts = read_facts(directory);
  if (!facts) return std::nullopt;
  JobLedger ledger(directory, *facts);
  ledger.recorded_ = read_objects(directory);
  return ledger;
}

void JobLedger::record_pids(const std::vector<ProcessRef>& processes) {
  if (facts_.mode != IpcMode::kHost) return;
  std::string lines;
  std::set<std::pair<pid_t, uint64_t>> present;
  for (const ProcessRef& process : processes) {
    const std::pair key(process.pid, process.start_time);
    present.insert(key);
    if (spans_.contains(key)) continue;
    const PidSpan span{process.pid, process.start_time, unix_time_of(process.start_time), std::nullopt};
    spans_.emplace(key, span);
    lines += pid_line(span);
  }
  for (auto& [key, span] : spans_) {
    if (span.end || present.contains(key)) continue;
    span.end = ::time(nullptr);
    lines += pid_line(span);
  }
  full_ = !append_lines(directory_, "pids", lines) || full_;
}

void JobLedger::record_creations(const std::vector<ShmCreation>& by_the_job) {
  if (facts_.mode != IpcMode::kHost) return;
  for (const ShmCreation& made : by_the_job) {
    if (made.ipc_namespace == facts_.host_namespace) creations_[made.id] = made;
  }
}

void JobLedger::record_objects() {
  if (facts_.mode != IpcMode::kHost) return;
  std::vector<PidSpan> spans;
  for (const auto& [key, span] : spans_) spans.push_back(span);
  std::string lines;
  const std::vector<IpcObject> objects = list_ipc_objects();
  std::erase_if(creations_, [&](const auto& entry) {
    return std::none_of(objects.begin(), objects.end(),
                        [&](const auto& object) { return is_of(object, entry.second); });
  });
  for (const IpcObject& object : objects) {
    const auto made = creations_.find(object.kind == IpcKind::kShm ? object.id : -1);
    const bool told = made != creations_.end() && object.uid == facts_.uid && is_of(object, made->second);
    if (object.removed || (!told && !made_by(object, facts_, spans))) continue;
    const auto same = [&](const IpcObject& old) { return same_object(old, object); };
    if (std::any_of(recorded_.begin(), recorded_.end(), same)) continue;
    recorded_.push_back(object);
    lines += object_line(object);
  }
  full_ = !append_lines(directory_, "objects", lines) || full_;
  // What is gone does not come again, and what those have made that had ended before is recorded.
  std::erase_if(recorded_, [&](const IpcObject& old) {
    return std::none_of(objects.begin(), objects.end(), [&](const auto& object) { return same_object(old, object); });
  });
  const int64_t past = ::time(nullptr) - kKeptEnded;
  std::erase_if(spans_, [past](const auto& entry) { return entry.second.end && *entry.second.end < past; });
}

std::vector<LedgerCleanup> JobLedger::cleanup(const std::string& base, const std::string& node, uint32_t job,
                                              const LedgerRuns& runs) {
  std::vector<LedgerCleanup> results;
  const auto run_dir = RunDir::find(base, node);
  if (!run_dir) return results;  // no job of ours has ever run here
  const NodeLock lock(*run_dir);
  for (const LedgerEntry& entry : list_entries(*run_dir)) {
    if (entry.job != job || !runs.contains(entry.restart)) continue;
    LedgerCleanup result;
    result.job = entry.job;
    result.restart = entry.restart;
    const std::string directory = run_dir->job_directory(entry.job, entry.restart);
    try {
      secure_directory(directory);
      clean_objects(directory, result);
      remove_directory(directory);
    } catch (const Error& error) {
      result.problems.emplace_back(error.what());
    }
    results.push_back(std::move(result));
  }
  return results;
}

std::vector<LedgerEntry> JobLedger::find_stale(const std::string& base, const std::string& node) {
  const auto run_dir = RunDir::find(base, node);
  if (!run_dir) return {};
  std::vector<LedgerEntry> entries = list_entries(*run_dir);
  for (LedgerEntry& entry : entries) {
    const std::string directory = run_dir->job_directory(entry.job, entry.restart);
    entry.facts = read_facts(directory);
    entry.in_use = in_use(directory);
  }
  return entries;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/file_scan.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "engine/base/error.h"
#include "engine/base/identity.h"
#include "engine/files/char_device.h"
#include "engine/files/file_kind.h"
#include "engine/files/unix_queue.h"

namespace icp {
namespace {

constexpr unsigned kPidfdThread = O_EXCL;  // PIDFD_THREAD, Linux 6.9

long kcmp(pid_t a, pid_t b, int type, unsigned long x = 0, unsigned long y = 0) {
  return ::syscall(SYS_kcmp, a, b, type, x, y);
}

// Ascending numeric entries; empty when the directory cannot be read. To be called once: the duplicate shares
// the reading position.
std::vector<int> numbers_in(const UniqueFd& directory) {
  std::vector<int> numbers;
  UniqueFd copy(::fcntl(directory.get(), F_DUPFD_CLOEXEC, 0));
  DIR* dir = copy ? ::fdopendir(copy.get()) : nullptr;
  if (!dir) return numbers;
  copy.release();
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') numbers.push_back(std::atoi(entry->d_name));
  }
  ::closedir(dir);
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

UniqueFd open_directory(const std::string& path) {
  return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

std::optional<std::string> read_small_file(int directory, const char* name) {
  const UniqueFd fd(::openat(directory, name, O_RDONLY | O_CLOEXEC));
  if (!fd) return {};
  std::string text;
  char buffer[4096];
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
    if (got < 0) return {};
    if (got == 0) return text;
    text.append(buffer, static_cast<size_t>(got));
    if (static_cast<size_t>(got) < sizeof buffer) return text;  // fdinfo is one record: a short read is the last one
  }
}

}  // namespace

struct FileScan::Table {
  pid_t tid = 0;        // the thread whose table this is: the leader, or a live one when it has ended
  UniqueFd fds, infos;  // /proc/PID/task/TID/fd and fdinfo
  std::vector<int> numbers;
  UniqueFd pidfd;  // made when first needed
  UniqueFd root;   // root directory paths are relative to; none: the agent's
  bool root_known = false;
  std::optional<size_t> shared_with;  // a process
};

struct FileScan::Found {
  FdUse use;
  std::string target;
  struct stat stat {};
  FdInfo info;

  static bool has_in_flight(const Found& one) {
    return S_ISSOCK(one.stat.st_mode) && one.info.number("scm_fds").value_or(0) != 0;
  }
  auto key() const { return std::tuple(stat.st_dev, stat.st_ino, info.flags, info.position); }
};

FileScan::FileScan(std::vector<ProcessRef> processes, const std::vector<OuterStreamId>& outer, Findings* findings)
    : processes_(std::move(processes)), outer_(outer), findings_(findings) {}

FileScan::~FileScan() = default;

void FileScan::run() {
  std::vector<Found> found;
  for (size_t i = 0; i < processes_.size(); i++) {
    tables_.push_back(std::make_unique<Table>());
    if (!processes_[i].zombie) open_table(i);
  }
  check_tables();
  for (size_t i = 0; i < processes_.size(); i++)
    if (!tables_[i]->shared_with) read_table(i, found);
  if (!checking()) take_in_flight(found);
  unseen_ = checking() && std::any_of(found.begin(), found.end(), Found::has_in_flight);
  sort_into_descriptions(found);
  number_descriptions();
  for (const auto& description : descriptions_) {
    for (const FileKind* kind : file_kinds()) {
      if (!kind->recognises(*this, *description)) continue;
      description->kind = kind;
      break;
    }
  }
}

// The leader of a process may have ended (a zombie) while other threads go on: its table is empty then, the
// process's is that of any other thread.
void FileScan::open_table(size_t process) {
  Table& table = *tables_[process];
  const pid_t pid = processes_[process].pid;
  table.tid = pid;
  table.fds = open_directory(fmt::format("/proc/{}/fd", pid));
  table.infos = open_directory(fmt::format("/proc/{}/fdinfo", pid));
  if (!table.fds || !table.infos) {
    if (checking()) return;
    throw_error(ErrorKind::kGone, "process {} ({}) has ended", pid, processes_[process].comm);
  }
  table.numbers = numbers_in(table.fds);
  if (!table.numbers.empty()) return;
  for (const int tid : numbers_in(open_directory(fmt::format("/proc/{}/task", pid)))) {
    UniqueFd fds = open_directory(fmt::format("/proc/{}/task/{}/fd", pid, tid));
    UniqueFd infos = open_directory(fmt::format("/proc/{}/task/{}/fdinfo", pid, tid));
    std::vector<int> numbers = numbers_in(fds);
    if (!infos || numbers.empty()) continue;
    table.numbers = std::move(numbers);
    table.tid = tid;
    table.fds = std::move(fds);
    table.infos = std::move(infos);
    return;
  }
}

// An agent that was killed between making a page tracker in the process and taking it over (UserfaultfdTracker::make)
// leaves a descriptor that nobody uses: one whose features were never agreed on. A program's own has been through
// UFFDIO_API. fdinfo: "API:\taa:<features>:<features of the kernel>".
static bool is_leftover_tracker(const std::string& target, const FdInfo& info) {
  return target == "anon_inode:[userfaultfd]" && info.cloexec && info.field("API").value_or("").starts_with("aa:0:");
}

void FileScan::read_table(size_t process, std::vector<Found>& found) {
  const Table& table = *tables_[process];
  if (!table.fds || !table.infos) return;
  for (const int fd : table.numbers) {
    Found one;
    if (read_descriptor(process, fd, one)) {
      if (!is_leftover_tracker(one.target, one.info)) found.push_back(std::move(one));
    } else if (!checking()) {
      throw_error(ErrorKind::kGone, "process {} ({}) ended while its files were looked at", processes_[process].pid,
                  processes_[process].comm);
    }
  }
}

UniqueFd FileScan::duplicate(const FdUse& use) {
  Table& table = *tables_[use.process];
  if (!table.pidfd) {
    const bool leader = table.tid == processes_[use.process].pid;
    table.pidfd.reset(static_cast<int>(::syscall(SYS_pidfd_open, table.tid, leader ? 0 : kPidfdThread)));
  }
  if (!table.pidfd) return {};
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_getfd, table.pidfd.get(), use.fd, 0)));
}

// What is found is looked into in turn: sockets travel through sockets.
void FileScan::take_in_flight(std::vector<Found>& found) {
  const size_t agent = processes_.size();
  for (size_t i = 0; i < found.size(); ++i) {
    if (!Found::has_in_flight(found[i])) continue;
    const UniqueFd socket = duplicate(found[i].use);
    if (!socket)
      throw_errno("cannot take over descriptor {} of process {}", found[i].use.fd,
                  processes_[found[i].use.process].pid);
    if (processes_.size() == agent) {
      processes_.push_back({::getpid(), -1, 0, "in flight in a Unix socket", false});
      tables_.push_back(std::make_unique<Table>());
      open_table(agent);
    }
    for (QueuedMessage& message : peek_socket(socket.get())) {
      for (UniqueFd& fd : message.files) {
        Found one;
        if (!read_descriptor(agent, fd.get(), one)) throw_errno("cannot look at a descriptor in a Unix socket");
        found.push_back(std::move(one));
        in_flight_.push_back(std::move(fd));
      }
    }
  }
}

Description* FileScan::find_open(int local_fd) {
  struct stat status {};
  if (::fstat(local_fd, &status) != 0) return nullptr;
  if (by_inode_.empty()) {
    for (const auto& description : descriptions_)
      by_inode_.emplace(std::pair(description->stat.st_dev, description->stat.st_ino), description.get());
  }
  const auto [begin, end] = by_inode_.equal_range({status.st_dev, status.st_ino});
  const auto at = std::find_if(begin, end, [&](const auto& entry) {
    const FdUse& use = entry.second->uses.front();
    return kcmp(tables_[use.process]->tid, ::getpid(), KCMP_FILE, static_cast<unsigned long>(use.fd),
                static_cast<unsigned long>(local_fd)) == 0;
  });
  return at == end ? nullptr : at->second;
}

bool FileScan::read_descriptor(size_t process, int fd, Found& found) const {
  const Table& table = *tables_[process];
  const std::string name = std::to_string(fd);
  char target[4096 + 32];
  const ssize_t length = ::readlinkat(table.fds.get(), name.c_str(), target, sizeof target);
  if (length < 0) return false;
  auto info = read_small_file(table.infos.get(), name.c_str());
  if (!info || ::fstatat(table.fds.get(), name.c_str(), &found.stat, 0) != 0) return false;
  found.target.assign(target, static_cast<size_t>(length));
  found.info = FdInfo::parse(std::move(*info));
  found.use = {process, fd, found.info.cloexec, found.info.locks};
  return true;
}

// A table shared between processes (clone(CLONE_FILES) without CLONE_THREAD) or not shared between the
// threads of a process (unshare(CLONE_FILES)) could not be told apart in an image.
void FileScan::check_tables() {
  std::vector<size_t> sorted;  // by kcmp's order
  for (size_t i = 0; i < processes_.size(); i++) {
    if (!tables_[i]->fds) continue;
    check_thread_tables(i);
    auto begin = sorted.begin(), end = sorted.end();
    std::optional<size_t> twin;
    while (begin != end) {
      const auto middle = begin + (end - begin) / 2;
      const long order = kcmp(tables_[i]->tid, tables_[*middle]->tid, KCMP_FILES);
      if (order == 0) {
        twin = *middle;
        break;
      }
      if (order == 1) {
        end = middle;
      } else {
        begin = middle + 1;
      }
    }
    if (!twin) {
      sorted.insert(begin, i);
      continue;
    }
    // A child in vfork has its parent's memory too, and is about to exec or exit.
    const bool vfork = kcmp(processes_[i].pid, processes_[*twin].pid, KCMP_VM) == 0;
    tables_[i]->shared_with = vfork ? std::nullopt : parent_with_table(i);
    if (tables_[i]->shared_with) continue;
    refuse_process(i, "descriptor table", fmt::format("table shared with process {}", processes_[*twin].pid),
                   vfork ? "try again in a moment" : "share it with its parent, or not at all (CLONE_FILES)", vfork);
  }
}

// clone(2) makes children that share it: they can be made again so.
std::optional<size_t> FileScan::parent_with_table(size_t process) const {
  for (size_t i = 0; i < processes_.size(); i++) {
    if (processes_[i].pid != processes_[process].ppid || !tables_[i]->fds) continue;
    if (kcmp(tables_[process]->tid, tables_[i]->tid, KCMP_FILES) == 0) return i;
  }
  return {};
}

std::optional<size_t> FileScan::shares_table(size_t process) const { return tables_[process]->shared_with; }

void FileScan::check_thread_tables(size_t process) {
  const pid_t pid = processes_[process].pid;
  const UniqueFd tasks = open_directory(fmt::format("/proc/{}/task", pid));
  if (!tasks) return;
  struct stat status {};
  if (::fstat(tasks.get(), &status) == 0 && status.st_nlink == 3) return;  // ".", ".." and one thread
  for (const int tid : numbers_in(tasks)) {
    if (tid == tables_[process]->tid || tid == pid) continue;
    const long order = kcmp(tables_[process]->tid, tid, KCMP_FILES);
    if (order <= 0) continue;  // the same one, or the thread has ended
    // A thread that is ending has no table any more, which differs too.
    if (numbers_in(open_directory(fmt::format("/proc/{}/task/{}/fd", pid, tid))).empty()) continue;
    refuse_process(process, fmt::format("thread {}", tid), "a descriptor table of its own (unshare(CLONE_FILES))",
                   "let the threads share their descriptors", false);
  }
}

std::optional<OuterStreamId> FileScan::match_outer(const Found& found) const {
  std::optional<OuterStreamId> best;
  int best_score = -1;
  const int rank = found.use.process < ranks_.size() ? ranks_[found.use.process].value_or(-1) : -1;
  for (const OuterStreamId& stream : outer_) {
    if (stream.dev != found.stat.st_dev || stream.ino != found.stat.st_ino) continue;
    if (S_ISREG(found.stat.st_mode) && !stream.include_regular) continue;
    // /dev/null is the same everywhere, and usually opened for other reasons than being a task's stdin.
    if (S_ISCHR(found.stat.st_mode) && is_plain_device(found.stat.st_rdev)) continue;
    const int access = static_cast<int>(found.info.flags) & O_ACCMODE;
    const bool fits = access == O_RDWR || (access == O_RDONLY) == (stream.fd == 0);
    if (S_ISFIFO(found.stat.st_mode) && !fits) continue;  // the other end has the same inode
    const int score = (rank == stream.rank ? 4 : 0) + (stream.fd == found.use.fd ? 2 : 0) + (fits ? 1 : 0);
    if (score > best_score) best = stream, best_score = score;
  }
  return best;
}

namespace {

std::unique_ptr<Description> new_description(std::string target, const struct stat& stat, FdInfo info, FdUse use) {
  auto description = std::make_unique<Description>();
  description->target = std::move(target);
  description->stat = stat;
  description->info = std::move(info);
  description->uses.push_back(std::move(use));
  return description;
}

}  // namespace

// Outer streams are told apart by the stream they stand for, everything else by kcmp(KCMP_FILE) among those
// that look alike; its order makes that n log n.
void FileScan::sort_into_descriptions(std::vector<Found>& found) {
  std::vector<Description*> outer;
  std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.key() < b.key(); });
  std::vector<Description*> alike;  // by kcmp's order
  for (size_t i = 0; i < found.size(); i++) {
    Found& one = found[i];
    if (i > 0 && found[i - 1].key() != one.key()) alike.clear();
    if (const auto stream = match_outer(one)) {
      if (stream->fd == kPmixRelayStream) pmix_relays_.insert(one.use.process);
      const auto known = std::find_if(outer.begin(), outer.end(), [&](const Description* d) {
        return d->outer->rank == stream->rank && d->outer->fd == stream->fd;
      });
      if (known != outer.end()) {
        (*known)->uses.push_back(one.use);
        continue;
      }
      descriptions_.push_back(new_description(one.target, one.stat, one.info, one.use));
      descriptions_.back()->outer = stream;
      outer.push_back(descriptions_.back().get());
      continue;
    }
    auto begin = alike.begin(), end = alike.end();
    bool same = false;
    while (begin != end && !same) {
      const auto middle = begin + (end - begin) / 2;
      const int order = compare_files(one.use, (*middle)->uses.front());
      if (order == 0) {
        (*middle)->uses.push_back(one.use);
        same = true;
      } else if (order == 1) {
        end = middle;
      } else {
        begin = middle + 1;
      }
    }
    if (same) continue;
    descriptions_.push_back(new_description(one.target, one.stat, one.info, one.use));
    alike.insert(begin, descriptions_.back().get());
  }
}

void FileScan::number_descriptions() {
  const auto by_place = [](const FdUse& a, const FdUse& b) {
    return std::tuple(a.process, a.fd) < std::tuple(b.process, b.fd);
  };
  for (const auto& description : descriptions_) {
    std::sort(description->uses.begin(), description->uses.end(), by_place);
  }
  std::sort(descriptions_.begin(), descriptions_.end(),
            [&](const auto& a, const auto& b) { return by_place(a->uses.front(), b->uses.front()); });
  by_fd_.resize(processes_.size());
  uint32_t id = 0;
  for (const auto& description : descriptions_) {
    description->id = ++id;
    for (const FdUse& use : description->uses) by_fd_[use.process].emplace_back(use.fd, description.get());
  }
  for (auto& entries : by_fd_) std::sort(entries.begin(), entries.end());
}

Description* FileScan::find(size_t process, int fd) {
  const auto& entries = by_fd_[process];
  const auto at = std::lower_bound(entries.begin(), entries.end(), fd,
                                   [](const auto& entry, int number) { return entry.first < number; });
  return at != entries.end() && at->first == fd ? at->second : nullptr;
}

void FileScan::refuse(Description& description, const std::string& what, const std::string& hint, bool transient) {
  if (description.refused) return;  // one reason is enough
  description.refused = true;
  const FdUse& use = description.uses.front();
  refuse_process(use.process, fmt::format("descriptor {}", use.fd), what, hint, transient);
}

void FileScan::refuse_process(size_t process, const std::string& where, const std::string& what,
                              const std::string& hint, bool transient) {
  Finding finding{processes_[process].pid, processes_[process].comm, where, what, hint, transient};
  if (findings_) {
    findings_->push_back(std::move(finding));
    return;
  }
  finding.hint.clear();  // the error has a place of its own for it
  throw Error(transient ? ErrorKind::kBusy : ErrorKind::kRefused, to_sentence(finding), 0, hint);
}

int FileScan::take(Description& description) {
  if (description.local) return description.local.get();
  const FdUse& use = description.uses.front();
  description.local = duplicate(use);
  if (!description.local && !checking()) {
    throw_errno("cannot take over descriptor {} of process {} ({})", use.fd, processes_[use.process].pid,
                processes_[use.process].comm);
  }
  return description.local.get();
}

bool FileScan::refresh(Description& description) {
  const FdUse& use = description.uses.front();
  auto text = read_small_file(tables_[use.process]->infos.get(), std::to_string(use.fd).c_str());
  if (text) description.info = FdInfo::parse(std::move(*text));
  return text.has_value();
}

// Link targets in /proc are relative to the root of the process's mount namespace, not to a chroot.
int FileScan::stat_path(size_t process, const std::string& path, struct stat& result) {
  Table& table = *tables_[process];
  const pid_t pid = processes_[process].pid;
  if (!table.root_known) {
    table.root_known = true;
    struct stat mine {
    }, theirs{};
    if (::stat("/proc/self/ns/mnt", &mine) == 0 && ::stat(fmt::format("/proc/{}/ns/mnt", pid).c_str(), &theirs) == 0 &&
        mine.st_ino != theirs.st_ino) {
      table.root.reset(::open(fmt::format("/proc/{}/root", pid).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    }
  }
  const auto look = [&] {
    if (!table.root) return ::lstat(path.c_str(), &result) == 0 ? 0 : -errno;
    const std::string below = path == "/" ? "." : path.substr(std::min(path.find_first_not_of('/'), path.size()));
    return ::fstatat(table.root.get(), below.c_str(), &result, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : -errno;
  };
  const int error = look();
  if (error != -EACCES) return error;
  try {
    const FsIdentity as_user(Identity::of_process(pid));
    return look();
  } catch (const Error&) {
    return error;  // the process has ended
  }
}

long FileScan::filesystem(Description& description) {
  for (const auto& [dev, type] : filesystems_) {
    if (dev == description.stat.st_dev) return type;
  }
  const FdUse& use = description.uses.front();
  struct statfs status {};
  const std::string path =
      fmt::format("/proc/{}/task/{}/fd/{}", processes_[use.process].pid, tables_[use.process]->tid, use.fd);
  if (::statfs(path.c_str(), &status) != 0) return 0;
  filesystems_.emplace_back(description.stat.st_dev, status.f_type);
  return status.f_type;
}

std::optional<pid_t> FileScan::vpid(pid_t pid) const {
  for (const ProcessRef& process : processes_) {
    if (process.pid == pid) return process.vpid;
  }
  return {};
}

int FileScan::compare_files(const FdUse& a, const FdUse& b) const {
  return static_cast<int>(kcmp(tables_[a.process]->tid, tables_[b.process]->tid, KCMP_FILE,
                               static_cast<unsigned long>(a.fd), static_cast<unsigned long>(b.fd)));
}

pid_t FileScan::table_tid(size_t process) const { return tables_[process]->tid; }

}  // namespace icp

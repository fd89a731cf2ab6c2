// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/ipc_list.h"

#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <optional>
#include <span>
#include <sstream>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr uint32_t kModeBits = 0777;

// Columns of one row; any field that is no number makes the row invalid.
class Row {
 public:
  explicit Row(std::string_view line) {
    std::istringstream in{std::string(line)};
    for (std::string word; in >> word;) words_.push_back(word);
  }
  size_t size() const { return words_.size(); }
  bool valid() const { return valid_; }

  template <typename T>
  T get(size_t column, int base = 10) {
    T value{};
    const std::string& word = words_.at(column);
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value, base);
    if (error != std::errc() || end != word.data() + word.size()) valid_ = false;
    return value;
  }

 private:
  std::vector<std::string> words_;
  bool valid_ = true;
};

// The four ids stand side by side in all three files: uid gid cuid cgid.
void parse_owner(Row& row, size_t column, IpcObject& object) {
  object.uid = row.get<uid_t>(column);
  object.gid = row.get<gid_t>(column + 1);
  object.cuid = row.get<uid_t>(column + 2);
  object.cgid = row.get<gid_t>(column + 3);
}

// key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap (ipc/shm.c)
void parse_shm(Row& row, uint32_t mode, IpcObject& object) {
  object.removed = (mode & SHM_DEST) != 0;
  object.locked = (mode & SHM_LOCKED) != 0;
  object.size = row.get<uint64_t>(3);
  object.creator = row.get<pid_t>(4);
  object.last = row.get<pid_t>(5);
  object.attached = row.get<uint64_t>(6);
  parse_owner(row, 7, object);
  object.attach_time = row.get<int64_t>(11);
  object.detach_time = row.get<int64_t>(12);
  object.create_time = row.get<int64_t>(13);
}

// key semid perms nsems uid gid cuid cgid otime ctime (ipc/sem.c)
void parse_sem(Row& row, IpcObject& object) {
  object.size = row.get<uint64_t>(3);
  parse_owner(row, 4, object);
  object.create_time = row.get<int64_t>(9);
}

// key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime (ipc/msg.c)
void parse_msg(Row& row, IpcObject& object) {
  object.size = row.get<uint64_t>(3);
  object.messages = row.get<uint64_t>(4);
  object.last_sender = row.get<pid_t>(5);
  object.last_receiver = row.get<pid_t>(6);
  parse_owner(row, 7, object);
  const auto sent = row.get<int64_t>(11);
  const auto received = row.get<int64_t>(12);
  object.last = received > sent ? object.last_receiver : object.last_sender;
  object.create_time = row.get<int64_t>(13);
}

std::optional<IpcObject> parse_row(IpcKind kind, std::string_view line) {
  constexpr std::array<size_t, 3> kColumns = {14, 10, 14};
  Row row(line);
  if (row.size() < kColumns[static_cast<size_t>(kind)]) return std::nullopt;
  IpcObject object;
  object.kind = kind;
  object.key = row.get<int32_t>(0);
  object.id = row.get<int>(1);
  const auto mode = row.get<uint32_t>(2, 8);
  object.mode = mode & kModeBits;
  switch (kind) {
    case IpcKind::kShm:
      parse_shm(row, mode, object);
      break;
    case IpcKind::kSem:
      parse_sem(row, object);
      break;
    case IpcKind::kMsg:
      parse_msg(row, object);
      break;
  }
  if (!row.valid()) return std::nullopt;
  return object;
}

int remove_object(const IpcObject& object) {
  switch (object.kind) {
    case IpcKind::kShm:
      return ::shmctl(object.id, IPC_RMID, nullptr);
    case IpcKind::kSem:
      return ::semctl(object.id, 0, IPC_RMID);
    case IpcKind::kMsg:
      return ::msgctl(object.id, IPC_RMID, nullptr);
  }
  return 0;
}

bool used_by(const IpcObject& object, const std::set<pid_t>& pids) {
  std::set<pid_t> users;
  if (object.kind == IpcKind::kSem) {
    users = semaphore_users(object);
  } else {
    for (const pid_t pid : {object.last_sender, object.last_receiver}) {
      if (pid != 0) users.insert(pid);
    }
  }
  // A set or queue that nobody has used yet may well be the job's.
  return users.empty() || std::any_of(users.begin(), users.end(), [&](pid_t pid) { return pids.contains(pid); });
}

bool selected(const SysvScope& scope, const IpcObject& object) {
  if (scope.whole_namespace) return true;
  if (object.kind == IpcKind::kShm && scope.attached_ids.contains(object.id)) return true;
  if (object.uid != scope.uid || object.create_time < scope.since) return false;
  return object.kind == IpcKind::kShm ? scope.pids.contains(object.creator) : used_by(object, scope.pids);
}

}  // namespace

std::string_view to_string(IpcKind kind) {
  switch (kind) {
    case IpcKind::kShm:
      return "shm";
    case IpcKind::kSem:
      return "sem";
    case IpcKind::kMsg:
      return "msg";
  }
  return "?";
}

std::vector<IpcObject> parse_ipc_list(IpcKind kind, std::string_view text) {
  std::vector<IpcObject> objects;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (const auto object = parse_row(kind, line)) objects.push_back(*object);  // the heading does not parse
  }
  std::sort(objects.begin(), objects.end(), [](const IpcObject& a, const IpcObject& b) { return a.id < b.id; });
  return objects;
}

std::vector<IpcObject> list_ipc_objects() {
  std::vector<IpcObject> all;
  for (const IpcKind kind : {IpcKind::kShm, IpcKind::kSem, IpcKind::kMsg}) {
    // Shows the namespace that the opening thread is in, with pids of the /proc mount's pid namespace.
    const std::string path = fmt::format("/proc/sysvipc/{}", to_string(kind));
    std::ifstream in(path);
    if (!in) throw_error(ErrorKind::kSystem, "cannot open {}: is /proc mounted, has the kernel CONFIG_SYSVIPC?", path);
    std::ostringstream text;
    text << in.rdbuf();
    const auto objects = parse_ipc_list(kind, text.str());
    all.insert(all.end(), objects.begin(), objects.end());
  }
  return all;
}

std::set<pid_t> semaphore_users(const IpcObject& object) {
  std::set<pid_t> users;
  for (uint64_t i = 0; i < object.size; ++i) {
    const int pid = ::semctl(object.id, static_cast<int>(i), GETPID);
    if (pid < 0) return {};
    if (pid > 0) users.insert(pid);
  }
  return users;
}

std::string describe(const IpcObject& object) {
  std::string text = fmt::format("{} key 0x{:08x} id {} size {}", to_string(object.kind),
                                 static_cast<uint32_t>(object.key), object.id, object.size);
  text += object.kind == IpcKind::kShm ? fmt::format(" creator pid {}", object.creator)
                                       : fmt::format(" creator uid {}", object.cuid);
  return text;
}

std::vector<IpcObject> select_objects(const SysvScope& scope) {
  std::vector<IpcObject> objects = list_ipc_objects();
  std::erase_if(objects, [&](const IpcObject& object) { return !selected(scope, object); });
  return objects;
}

std::vector<IpcObject> remove_ipc_objects(const std::vector<IpcObject>& objects, std::vector<std::string>* problems) {
  std::vector<IpcObject> removed;
  for (const IpcObject& object : objects) {
    if (object.removed) continue;
    if (remove_object(object) == 0) {
      removed.push_back(object);
    } else if (errno != EINVAL && errno != EIDRM) {  // those two: gone meanwhile
      const std::string what = fmt::format("cannot remove {}: {}", describe(object), errno_text(errno));
      if (problems == nullptr) throw Error(ErrorKind::kSystem, what, errno);
      problems->push_back(what);
    }
  }
  return removed;
}

}  // namespace icp

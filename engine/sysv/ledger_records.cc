// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/ledger_records.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <map>
#include <set>
#include <sstream>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/times.h"
#include "engine/base/unique_fd.h"

namespace icp {
namespace {

// The wall clock may be stepped a little between two looks, and System V times have whole seconds.
constexpr int64_t kClockSlack = 2;
constexpr uint64_t kMostOfFile = 4 << 20;  // bytes: /run is the node's memory, and lines are the user's to bring about

std::optional<std::string> read_text(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd) return std::nullopt;
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(fd.get(), buffer, sizeof buffer)) != 0;) {
    if (got > 0) text.append(buffer, static_cast<size_t>(got));
    if (got < 0 && errno != EINTR) return std::nullopt;
  }
  return text;
}

// Complete lines of a file; none when it is missing.
std::vector<std::string> read_lines(const std::string& path) {
  std::vector<std::string> lines;
  std::istringstream text(read_text(path).value_or(""));
  for (std::string line; std::getline(text, line) && !text.eof();) lines.push_back(line);
  return lines;
}

void write_all(int fd, const std::string& text, const std::string& path) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t got = ::write(fd, text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("cannot write {}", path);
    done += static_cast<size_t>(got);
  }
}

std::optional<IpcKind> kind_of(const std::string& name) {
  for (const IpcKind kind : {IpcKind::kShm, IpcKind::kSem, IpcKind::kMsg}) {
    if (name == to_string(kind)) return kind;
  }
  return std::nullopt;
}

bool covers(const PidSpan& span, pid_t pid, int64_t time) {
  return span.pid == pid && time >= span.begin - kClockSlack && (!span.end || time <= *span.end + kClockSlack);
}

// A span with an open end, seen from now: when its process is not there any more, the pid may belong to another one
// that has made the object, so it ends where that one begins.
void close_span(PidSpan& span) {
  if (span.end) return;
  try {
    const uint64_t start = ProcStat::read(span.pid).start_time_ticks;
    // Without slack: what the newcomer makes in its first seconds is not the job's.
    if (start != span.start_ticks) span.end = unix_time_of(start) - kClockSlack - 1;
  } catch (const Error&) {
    // Ended, and the pid is free.
  }
}

}  // namespace

std::string current_boot_id() {
  std::string id = read_text("/proc/sys/kernel/random/boot_id").value_or("");
  while (!id.empty() && id.back() == '\n') id.pop_back();
  return id;
}

void write_facts(const std::string& directory, const LedgerFacts& facts) {
  const std::string path = directory + "/facts";
  const std::string temporary = path + ".tmp";
  const std::string text =
      fmt::format("job {}\nrestart {}\nuid {}\nmode {}\nsince {}\nhost_namespace {}\nboot_id {}\nend 1\n", facts.job,
                  facts.restart, facts.uid, facts.mode == IpcMode::kPrivate ? "private" : "host", facts.since,
                  facts.host_namespace, facts.boot_id);
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!fd) throw_errno("cannot make {}", temporary);
  write_all(fd.get(), text, temporary);
  if (::rename(temporary.c_str(), path.c_str()) != 0) throw_errno("cannot make {}", path);
}

std::optional<LedgerFacts> read_facts(const std::string& directory) {
  LedgerFacts facts;
  std::set<std::string> seen;
  for (const std::string& line : read_lines(directory + "/facts")) {
    std::istringstream in(line);
    std::string name, word;
    in >> name;
    if (name == "job") in >> facts.job;
    if (name == "restart") in >> facts.restart;
    if (name == "uid") in >> facts.uid;
    if (name == "mode") in >> word;
    if (name == "mode" && word == "host") facts.mode = IpcMode::kHost;
    if (name == "since") in >> facts.since;
    if (name == "host_namespace") in >> facts.host_namespace;
    if (name == "boot_id") in >> facts.boot_id;
    if (in) seen.insert(name);
  }
  for (const char* name : {"job", "restart", "uid", "mode", "since", "host_namespace", "end"}) {
    if (!seen.contains(name)) return std::nullopt;
  }
  return facts;
}

int64_t unix_time_of(uint64_t start_ticks) {
  constexpr int64_t kNsInSecond = 1'000'000'000;
  // Whole seconds of each clock, taken apart, would be a second too late half of the time.
  const int64_t since_boot = static_cast<int64_t>(start_ticks) * (kNsInSecond / ::sysconf(_SC_CLK_TCK));
  return (now_ns(CLOCK_REALTIME) - now_ns(CLOCK_BOOTTIME) + since_boot) / kNsInSecond;
}

std::string pid_line(const PidSpan& span) {
  return span.end ? fmt::format("- {} {} {} {}\n", span.pid, span.start_ticks, span.begin, *span.end)
                  : fmt::format("+ {} {} {} 0\n", span.pid, span.start_ticks, span.begin);
}

std::vector<PidSpan> read_pids(const std::string& directory) {
  std::map<std::pair<pid_t, uint64_t>, PidSpan> spans;
  for (const std::string& line : read_lines(directory + "/pids")) {
    std::istringstream in(line);
    std::string sign;
    PidSpan span;
    int64_t end = 0;
    if (!(in >> sign >> span.pid >> span.start_ticks >> span.begin >> end) || span.pid <= 0) continue;
    if (sign != "+" && sign != "-") continue;
    if (sign == "-") span.end = end;
    spans[{span.pid, span.start_ticks}] = span;
  }
  std::vector<PidSpan> all;
  for (const auto& [key, span] : spans) all.push_back(span);
  return all;
}

std::string object_line(const IpcObject& object) {
  return fmt::format("{} {} {} {} {} {}\n", to_string(object.kind), object.id, object.key, object.uid, object.creator,
                     object.create_time);
}

std::vector<IpcObject> read_objects(const std::string& directory) {
  std::vector<IpcObject> objects;
  for (const std::string& line : read_lines(directory + "/objects")) {
    std::istringstream in(line);
    std::string name;
    IpcObject object;
    if (!(in >> name >> object.id >> object.key >> object.uid >> object.creator >> object.create_time)) continue;
    const auto kind = kind_of(name);
    if (!kind) continue;
    object.kind = *kind;
    objects.push_back(object);
  }
  return objects;
}

bool same_object(const IpcObject& a, const IpcObject& b) {
  return a.kind == b.kind && a.id == b.id && a.key == b.key && a.uid == b.uid && a.creator == b.creator &&
         a.create_time == b.create_time;
}

bool is_of(const IpcObject& object, const ShmCreation& made) {
  // Its time is that of the last IPC_SET.
  return object.kind == IpcKind::kShm && object.id == made.id && object.key == made.key &&
         object.creator == made.creator && object.create_time >= made.time - kClockSlack;
}

bool append_lines(const std::string& directory, const char* name, const std::string& lines) {
  if (lines.empty()) return true;
  const std::string path = directory + "/" + name;
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!fd) throw_errno("cannot open {}", path);
  struct stat info {};
  char last = '\n';
  if (::fstat(fd.get(), &info) != 0) throw_errno("cannot look at {}", path);
  if (static_cast<uint64_t>(info.st_size) + lines.size() > kMostOfFile) return false;
  if (info.st_size > 0) {
    static_cast<void>(!::pread(fd.get(), &last, 1, info.st_size - 1));
  }
  write_all(fd.get(), last == '\n' ? lines : "\n" + lines, path);
  return true;
}

bool made_by(const IpcObject& object, const LedgerFacts& facts, const std::vector<PidSpan>& spans) {
  if (object.uid != facts.uid || object.create_time < facts.since) return false;
  std::set<pid_t> users;
  if (object.kind == IpcKind::kShm) users = {object.creator};
  if (object.kind == IpcKind::kMsg) users = {object.last_sender, object.last_receiver};
  if (object.kind == IpcKind::kSem) users = semaphore_users(object);
  users.erase(0);
  if (users.empty()) return false;
  return std::all_of(users.begin(), users.end(), [&](pid_t pid) {
    return std::any_of(spans.begin(), spans.end(), [&](PidSpan span) {
      if (span.pid != pid) return false;
      close_span(span);
      // Of a set or queue only the last uses are known, which are after its creation.
      if (object.kind != IpcKind::kShm) return !span.end || *span.end + kClockSlack >= object.create_time;
      return covers(span, pid, object.create_time);
    });
  });
}

}  // namespace icp

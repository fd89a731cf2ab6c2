// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/engine/roundtrip.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <set>

#include "engine/base/error.h"
#include "engine/base/own_network.h"
#include "engine/base/unique_fd.h"

namespace icp::test {
namespace {

constexpr int kTimeoutMs = 20'000;
constexpr uid_t kNobody = 65534;

// Whose processes are checkpointed: root works for another user, and others for themselves.
uid_t user() { return ::geteuid() == 0 ? kNobody : ::geteuid(); }
gid_t group() { return ::geteuid() == 0 ? kNobody : ::getegid(); }

struct Pipe {
  UniqueFd read, write;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) throw_errno("pipe");
    read.reset(ends[0]);
    write.reset(ends[1]);
  }
};

bool readable(int fd) {
  pollfd wait{fd, POLLIN, 0};
  return ::poll(&wait, 1, kTimeoutMs) == 1;
}

// stdin: go; stdout: ready; stderr: the test's own.
pid_t start(const Body& body, Pipe& ready, Pipe& go, bool same_view, bool as_root) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::dup2(go.read.get(), 0);
  ::dup2(ready.write.get(), 1);
  for (int fd = 3; fd < 1024; ++fd) ::close(fd);
  ::setsid();
  if (!as_root && (::setgid(group()) != 0 || ::setuid(user()) != 0)) ::_exit(98);
  Gate gate(1, 0, same_view);
  ::_exit(body(gate));
}

int wait_for_exit(RestoredCapsule& capsule) {
  for (;;) {
    if (!readable(capsule.event_fd())) {
      ADD_FAILURE() << "the restored process did not end";
      return -1;
    }
    for (const TaskExit& exit : capsule.take_exits())
      if (exit.rank == 0) return exit.status;
    pollfd state{capsule.event_fd(), POLLIN, 0};
    ::poll(&state, 1, 0);
    if ((state.revents & POLLHUP) != 0 && capsule.take_exits().empty()) {
      ADD_FAILURE() << "the capsule ended without a report";
      return -1;
    }
  }
}

// That the version which has just been taken restores, while the processes it was taken of are there. In a process of
// its own, which gets a network of its own.
void rehearse(const RestoreOptions& options) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    try {
      enter_own_network();
      RestoredCapsule::rehearse(options);
      ::_exit(0);
    } catch (const Error& error) {
      dprintf(2, "the version does not restore: %s\n", error.what());
    }
    ::_exit(1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0) << "the version that was taken does not restore beside its processes";
}

class Roundtrip {
 public:
  Roundtrip(const Body& body, const RoundtripOptions& options) : options_(options) {
    if (::chown(directory_.path().c_str(), user(), group()) != 0) throw_errno("chown");
    config_.image_path = directory_.path() + "/image";
    config_.identity = identity();
    config_.node = "here";
    pid_ = start(body, ready_, go_, options.same_view && !options.expect_refused, options.as_root);
    char byte;
    if (!readable(ready_.read.get()) || ::read(ready_.read.get(), &byte, 1) != 1)
      throw_error(ErrorKind::kSystem, "the process under test did not get ready");
    config_.outer = outer_streams_of(pid_, 0);
    struct stat status {};  // the test's standard error may be a file or a terminal
    if (::stat(fmt::format("/proc/{}/fd/2", pid_).c_str(), &status) == 0)
      config_.outer.push_back({0, 2, status.st_dev, status.st_ino, true});
    if (options_.session) options_.session(config_);
  }

  ~Roundtrip() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }

  int run() {
    {
      Session session(config_, {{pid_, 0}});
      take(session, options_.versions);
      EXPECT_FALSE(session.alive());
    }
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
    for (int generation = 1; generation < options_.generations; ++generation) {
      RestoredCapsule capsule = RestoredCapsule::restore(restore_options());
      compare(capsule);
      SessionConfig config = config_;
      config.outer.clear();
      Session session = capsule.continue_session(config);
      take(session, 1);
    }
    RestoredCapsule capsule = RestoredCapsule::restore(restore_options());
    compare(capsule);
    if (::write(go_.write.get(), "g", 1) != 1) throw_errno("write");
    return wait_for_exit(capsule);
  }

 private:
  void take(Session& session, int versions) {
    for (int i = 0; i < versions; ++i) {
      ::usleep(options_.pause_ms * 1000);
      if (options_.same_view && i + 1 == versions) look(session.roots().at(0).pid);
      CheckpointOptions how;
      how.kill = i + 1 == versions;
      how.committed = [this](const CheckpointResult&) { rehearse(plain_options()); };
      const CheckpointResult result = session.checkpoint(how);
      EXPECT_EQ(result.version, ++version_);
    }
  }

  // What moves by itself is not to be compared.
  void look(pid_t root) {
    constexpr useconds_t kBetween = 3000;
    view_ = view_of_tree(root);
    ::usleep(kBetween);
    const KernelView again = view_of_tree(root);
    for (const auto& [what, was] : view_) {
      const auto now = again.find(what);
      if (now == again.end() || now->second != was) moving_.insert(what);
    }
    for (const auto& [what, is] : again)
      if (!view_.contains(what)) moving_.insert(what);
  }

  void compare(const RestoredCapsule& capsule) {
    if (!options_.same_view) return;
    KernelView now = view_of_tree(capsule.roots().at(0).pid);
    for (const std::string& what : moving_) {
      view_.erase(what);
      now.erase(what);
    }
    for (const std::string& line : differences(view_, now)) ADD_FAILURE() << "after the restart, " << line;
  }

  Identity identity() const { return options_.as_root ? Identity{} : Identity{user(), group(), {}}; }

  RestoreOptions restore_options() {
    RestoreOptions options = plain_options();
    if (options_.restore) options_.restore(options);
    return options;
  }

  RestoreOptions plain_options() {
    RestoreOptions options;
    options.image_path = config_.image_path;
    options.identity = identity();
    options.init_path = ICP_INIT_PATH;
    options.streams[0] = {go_.read.get(), ready_.write.get(), 2};
    return options;
  }

  RoundtripOptions options_;
  TempDir directory_;
  Pipe ready_, go_;
  SessionConfig config_;
  pid_t pid_ = 0;
  uint32_t version_ = 0;
  KernelView view_;  // before the last version
  std::set<std::string> moving_;
};

}  // namespace

void Gate::ready() {
  if (same_view_) view_ = view_of_self();
  CHECK_OR_DIE(::write(ready_fd_, "r", 1) == 1);
}

void Gate::go() {
  char byte;
  CHECK_OR_DIE(::read(go_fd_, &byte, 1) == 1);
  if (!same_view_ || view_.empty()) return;
  const KernelView now = view_of_self();
  if (now.at("thread") != view_.at("thread")) return;  // it is another one's
  const std::vector<std::string> lines = differences(view_, now);
  for (const std::string& line : lines) dprintf(2, "after the restart, %s\n", line.c_str());
  CHECK_OR_DIE(lines.empty());
}

const char* lacking_rights() {
  if (::geteuid() == 0) return nullptr;
  static const bool able = [] {
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(::unshare(CLONE_NEWUSER) == 0 ? 0 : 1);
    int status = -1;
    return pid > 0 && ::waitpid(pid, &status, 0) == pid && status == 0;
  }();
  return able ? nullptr : "needs root or user namespaces";
}

int roundtrip(const Body& body, const RoundtripOptions& options) {
  try {
    Roundtrip roundtrip(body, options);
    return roundtrip.run();
  } catch (const Error& error) {
    const bool refused = error.kind() == ErrorKind::kRefused || error.kind() == ErrorKind::kBusy;  // or for now
    if (options.expect_refused && refused) return 0;
    ADD_FAILURE() << error.what() << (error.hint().empty() ? "" : "; ") << error.hint();
    return -1;
  }
}

TempDir::TempDir() {
  char path[] = "/var/tmp/icp-test-XXXXXX";
  if (::mkdtemp(path) == nullptr) throw_errno("mkdtemp");
  path_ = path;
}

TempDir::~TempDir() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

}  // namespace icp::test

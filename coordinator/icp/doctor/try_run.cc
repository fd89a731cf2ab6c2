// SPDX-License-Identifier: GPL-2.0-or-later
// icp doctor --try: the whole way once, with a program that knows what must come out.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "coordinator/icp/doctor/checks.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/users.h"
#include "engine/base/error.h"
#include "engine/base/unique_fd.h"

namespace icp::doctor {

namespace {

using namespace std::chrono_literals;

constexpr uint32_t kSteps = 100;
constexpr size_t kWords = 1 << 20;  // 8 MiB
constexpr auto kStep = 20ms;
constexpr auto kPatience = 60s;

// Computes in memory that was written in part before the checkpoint, in part after it.
class Computation {
 public:
  Computation() : memory_(kWords) {
    for (size_t i = 0; i < kWords; i++) memory_[i] = i * 0x9e3779b97f4a7c15u;
  }
  void step(uint32_t number) {
    for (size_t i = number % 16; i < kWords; i += 512)
      memory_[i] = (memory_[i] ^ number) * 0x100000001b3u + memory_[(i + 4099) % kWords];
  }
  uint64_t sum() const {
    uint64_t sum = 0;
    for (const uint64_t word : memory_) sum = sum * 31 + word;
    return sum;
  }

 private:
  std::vector<uint64_t> memory_;
};

std::string expected_output() {
  Computation computation;
  std::string text;
  for (uint32_t i = 1; i <= kSteps; i++) {
    computation.step(i);
    text += fmt::format("{}\n", i);
  }
  return text + fmt::format("sum {:016x}\n", computation.sum());
}

// With the rights of `user`, who may have put anything there.
std::string content(const std::string& path, const Identity& user) {
  constexpr size_t kMost = 1 << 20;
  const FsIdentity as_user(user);
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  struct stat info {};
  if (!file || ::fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode)) return {};
  std::string text(kMost, '\0');
  size_t bytes = 0;
  ssize_t got = 0;
  while (bytes < kMost && (got = ::read(file.get(), text.data() + bytes, kMost - bytes)) > 0)
    bytes += static_cast<size_t>(got);
  text.resize(bytes);
  return text;
}

// A directory of the user's that goes at the end, with all in it: removed with the user's rights, who may have put
// anything there.
class Workplace {
 public:
  Workplace(const std::string& parent, const Identity& user) : path_(parent + "/icp-try-XXXXXX"), user_(user) {
    const FsIdentity as_user(user_);
    if (::mkdtemp(path_.data()) == nullptr) throw_errno("cannot make a directory in {}", parent);
  }
  ~Workplace() {
    const FsIdentity as_user(user_);
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Workplace(const Workplace&) = delete;
  Workplace& operator=(const Workplace&) = delete;
  std::string operator/(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
  Identity user_;
};

// A program with arguments, its standard error in a file of the caller's. Killed at the end if it still runs.
class Child {
 public:
  Child(const std::vector<std::string>& command, const std::string& errors, const Identity* user) {
    pid_ = ::fork();
    if (pid_ < 0) throw_errno("cannot start a process");
    if (pid_ == 0) execute(command, errors, user);
  }
  ~Child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    wait();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  void kill() const { ::kill(pid_, SIGKILL); }
  // Its wait(2) status.
  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = 0;
    return status;
  }
  bool ended() {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid_;
  }

 private:
  [[noreturn]] static void execute(const std::vector<std::string>& command, const std::string& errors,
                                   const Identity* user) {
    try {
      std::vector<char*> arguments;
      for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
      arguments.push_back(nullptr);
      if (user != nullptr) become(*user);
      const int null = ::open("/dev/null", O_RDWR);
      const int file = ::open(errors.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600);
      ::dup2(null, STDIN_FILENO);
      ::dup2(null, STDOUT_FILENO);
      ::dup2(file, STDERR_FILENO);
      ::close_range(STDERR_FILENO + 1, ~0u, 0);  // what the caller has left open is none of the program's
      ::execv(arguments[0], arguments.data());
    } catch (const std::exception&) {
    }
    ::_exit(127);
  }
  pid_t pid_ = 0;
};

template <typename Condition>
bool comes_true(Condition condition) {
  for (const auto end = std::chrono::steady_clock::now() + kPatience; std::chrono::steady_clock::now() < end;
       std::this_thread::sleep_for(5ms))
    if (condition()) return true;
  return false;
}

size_t lines_in(const std::string& path, const Identity& user) {
  const std::string text = content(path, user);
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

// The last line that icp has said, without its name.
std::string said(const std::string& path, const Identity& user) {
  std::string text = content(path, user);
  text.resize(text.find_last_not_of('\n') + 1);
  text.erase(0, text.rfind('\n') + 1);
  return text.starts_with("icp: ") ? text.substr(5) : text;
}

void run_and_come_back(const std::string& icp, const std::string& directory, const Identity& user) {
  const Identity caller = caller_identity();
  // Notes of the caller's, who may be root, are not made in a directory of the user's, who could put another in its place.
  const Workplace place(directory, user), notes(std::filesystem::temp_directory_path(), caller);
  const std::string output = place / "output", image = place / "image", errors = notes / "icp",
                    program_errors = place / "errors";
  const auto fail = [&](const char* what) {
    const std::string why = said(errors, caller);
    throw_error(ErrorKind::kRefused, "{}{}{}", what, why.empty() ? "" : ": ", why);
  };
  const Identity* const as = ::geteuid() == 0 ? &user : nullptr;
  Child program({icp, "trial-program", output, std::to_string(kSteps)}, program_errors, as);
  if (!comes_true([&] { return lines_in(output, user) >= 10 || program.ended(); }) || program.ended()) {
    const std::string why = said(program_errors, user);
    throw_error(ErrorKind::kRefused, "the program cannot be started by user {}{}{}", user.uid, why.empty() ? "" : ": ",
                why);
  }
  const int taken =
      Child({icp, "checkpoint", "--dir", image, "--pid", std::to_string(program.pid())}, errors, nullptr).wait();
  if (taken != 0) fail("no version could be taken");
  const size_t reached = lines_in(output, user);
  comes_true([&] { return lines_in(output, user) > reached || program.ended(); });
  program.kill();
  if (!WIFSIGNALED(program.wait())) fail("the program ended before it could be killed");

  Child restarted({icp, "restart", "--dir", image}, errors, nullptr);
  if (!comes_true([&] { return restarted.ended(); })) fail("the restarted program does not end");
  if (restarted.wait() != 0) fail("it could not be restarted");
  if (content(output, user) != expected_output()) fail("the restarted program had a wrong result");
}

}  // namespace

int trial_program(const std::string& file, uint32_t steps) {
  const UniqueFd out(::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!out) throw_errno("cannot open {}", file);
  const auto write_line = [&](const std::string& line) {
    if (::write(out.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
      throw_errno("cannot write {}", file);
  };
  Computation computation;
  for (uint32_t i = 1; i <= steps; i++) {
    computation.step(i);
    write_line(fmt::format("{}\n", i));
    std::this_thread::sleep_for(kStep);
  }
  write_line(fmt::format("sum {:016x}\n", computation.sum()));
  return 0;
}

void try_run(const std::string& icp, const std::string& directory, const Identity& user, Diagnosis& diagnosis) {
  const auto start = std::chrono::steady_clock::now();
  try {
    run_and_come_back(icp, directory, user);
    const auto taken = std::chrono::steady_clock::now() - start;
    diagnosis.ok("try", fmt::format("a program of {} was saved, killed, restarted, and had the right result ({})",
                                    user_name(user.uid),
                                    human_time(static_cast<uint64_t>(std::chrono::nanoseconds(taken).count()))));
  } catch (const Error& error) {
    diagnosis.error("try", error.what(),
                    "the lines above may say why; icp -vv checkpoint and icp -vv restart say more");
  }
}

}  // namespace icp::doctor

// SPDX-License-Identifier: GPL-2.0-or-later
// Pseudo terminals there and back, with what is on its way through them, sessions and groups.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>

#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

class TerminalRoundtrip : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    int master = -1, slave = -1;
    if (::openpty(&master, &slave, nullptr, nullptr, nullptr) != 0) GTEST_SKIP() << "no terminals here";
    ::close(master);
    ::close(slave);
  }
};

struct Pty {
  int master = -1, slave = -1;
  std::string name;
  Pty() {
    char text[64];
    CHECK_OR_DIE(::openpty(&master, &slave, text, nullptr, nullptr) == 0);
    name = text;
  }
  termios settings() const {
    termios result{};
    CHECK_OR_DIE(::tcgetattr(slave, &result) == 0);
    return result;
  }
  void set(const termios& settings) const { CHECK_OR_DIE(::tcsetattr(slave, TCSANOW, &settings) == 0); }
  void make_raw() const {
    termios raw = settings();
    ::cfmakeraw(&raw);
    set(raw);
  }
  void no_echo() const {
    termios quiet = settings();
    quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    set(quiet);
  }
};

void put(int fd, const std::string& text) {
  CHECK_OR_DIE(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

std::string get(int fd) {
  pollfd wait{fd, POLLIN, 0};
  CHECK_OR_DIE(::poll(&wait, 1, 5000) == 1);
  char buffer[8192];
  const ssize_t got = ::read(fd, buffer, sizeof buffer);
  return got < 0 ? "(" + std::string(std::strerror(errno)) + ")" : std::string(buffer, static_cast<size_t>(got));
}

std::string get(int fd, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += get(fd);
  return text;
}

bool quiet(int fd) {
  pollfd wait{fd, POLLIN, 0};
  return ::poll(&wait, 1, 50) == 0;
}

void wait_until_processed() { ::usleep(50'000); }  // the kernel hands input on in a thread of its own

TEST_F(TerminalRoundtrip, SettingsSizeModesAndName) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const Pty pty, other;
                  termios settings = pty.settings();
                  settings.c_iflag |= IUTF8 | IXANY;
                  settings.c_lflag &= ~static_cast<tcflag_t>(ECHO | ISIG);
                  settings.c_cc[VEOF] = 'x';
                  settings.c_cc[VMIN] = 7;
                  ::cfsetspeed(&settings, B115200);
                  pty.set(settings);
                  const winsize size{41, 101, 7, 9};
                  int on = 1;
                  CHECK_OR_DIE(::ioctl(pty.master, TIOCSWINSZ, &size) == 0 && ::ioctl(pty.master, TIOCPKT, &on) == 0);
                  CHECK_OR_DIE(::fchmod(pty.slave, 0600) == 0 && ::ioctl(other.slave, TIOCEXCL) == 0);
                  CHECK_OR_DIE(::ioctl(pty.master, TIOCSPTLCK, &on) == 0);
                  CHECK_OR_DIE(::fcntl(pty.master, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
                  gate.ready_and_go();
                  const termios after = pty.settings();
                  CHECK_OR_DIE(std::memcmp(&after, &settings, sizeof after) == 0);
                  winsize now{};
                  CHECK_OR_DIE(::ioctl(pty.slave, TIOCGWINSZ, &now) == 0);
                  CHECK_OR_DIE(std::memcmp(&now, &size, sizeof now) == 0);
                  int packet = 0, locked = 0, exclusive = 0;
                  CHECK_OR_DIE(::ioctl(pty.master, TIOCGPKT, &packet) == 0 && packet == 1);
                  CHECK_OR_DIE(::ioctl(pty.master, TIOCGPTLCK, &locked) == 0 && locked == 1);
                  CHECK_OR_DIE(::ioctl(other.slave, TIOCGEXCL, &exclusive) == 0 && exclusive == 1);
                  CHECK_OR_DIE((::fcntl(pty.master, F_GETFL) & O_NONBLOCK) != 0);
                  CHECK_OR_DIE((::fcntl(pty.slave, F_GETFL) & O_NONBLOCK) == 0);
                  CHECK_OR_DIE(pty.name == ::ttyname(pty.slave) && other.name == ::ttyname(other.slave));
                  struct stat status {};
                  CHECK_OR_DIE(::stat(pty.name.c_str(), &status) == 0 && (status.st_mode & 0777) == 0600);
                  char byte;
                  CHECK_OR_DIE(::read(pty.master, &byte, 1) < 0 && errno == EAGAIN);
                  return 0;
                },
                {.generations = 2, .versions = 2}),
            0);
}

TEST_F(TerminalRoundtrip, LinesInFlight) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const Pty pty;
                  pty.no_echo();
                  put(pty.master, "one\r\x16\x04 two\n");  // ^V quotes ^D
                  put(pty.master, "ended\x04");
                  put(pty.master, "\x04open\x16\x16 lin\xff");
                  put(pty.slave, "answer\n");
                  wait_until_processed();
                  gate.ready_and_go();
                  CHECK_OR_DIE(get(pty.slave) == "one\n");
                  CHECK_OR_DIE(get(pty.slave) == "\x04 two\n");
                  CHECK_OR_DIE(get(pty.slave) == "ended");
                  CHECK_OR_DIE(get(pty.slave).empty());
                  CHECK_OR_DIE(quiet(pty.slave));
                  put(pty.master,
                      "\x7f"
                      "e\n");
                  CHECK_OR_DIE(get(pty.slave) == "open\x16 line\n");
                  CHECK_OR_DIE(get(pty.master) == "answer\r\n" && quiet(pty.master));
                  return 0;
                },
                {.generations = 3, .versions = 3}),
            0);
}

TEST_F(TerminalRoundtrip, BytesInFlight) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const Pty pty, waiting;
                  pty.make_raw();
                  std::string bytes;
                  for (int i = 0; i < 240; ++i) bytes += static_cast<char>(i);
                  put(pty.master, bytes);
                  put(pty.slave, bytes + bytes);
                  waiting.make_raw();
                  termios many = waiting.settings();
                  many.c_cc[VMIN] = 200;
                  waiting.set(many);
                  put(waiting.master, "few");
                  wait_until_processed();
                  gate.ready_and_go();
                  CHECK_OR_DIE(get(pty.slave, bytes.size()) == bytes && quiet(pty.slave));
                  CHECK_OR_DIE(get(pty.master, 2 * bytes.size()) == bytes + bytes && quiet(pty.master));
                  int there = 0;
                  CHECK_OR_DIE(quiet(waiting.slave) && ::ioctl(waiting.slave, FIONREAD, &there) == 0 && there == 3);
                  return 0;
                },
                {.generations = 3, .versions = 3}),
            0);
}

// As full as it gets: a writer waits for room.
TEST_F(TerminalRoundtrip, FullOfOutput) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const Pty pty;
                  CHECK_OR_DIE(::fcntl(pty.slave, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
                  pty.make_raw();
                  size_t total = 0;
                  std::string written;
                  for (int i = 0, misses = 0; misses < 3; ++i) {
                    const std::string line = "line " + std::to_string(i) + "\n";
                    const ssize_t done = ::write(pty.slave, line.data(), line.size());
                    if (done <= 0) {
                      ++misses;
                      wait_until_processed();
                      continue;
                    }
                    written.append(line, 0, static_cast<size_t>(done));
                  }
                  total = written.size();
                  CHECK_OR_DIE(total > 4096);
                  gate.ready_and_go();
                  CHECK_OR_DIE(get(pty.master, total) == written && quiet(pty.master));
                  put(pty.slave, "more");
                  CHECK_OR_DIE(get(pty.master) == "more");
                  return 0;
                },
                {.generations = 2, .versions = 2}),
            0);
}

TEST_F(TerminalRoundtrip, StoppedByKey) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const Pty pty;
                  pty.no_echo();
                  CHECK_OR_DIE(::fcntl(pty.slave, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
                  put(pty.slave, "before");
                  put(pty.master, "typed\x13");
                  wait_until_processed();
                  CHECK_OR_DIE(::write(pty.slave, "x", 1) < 0 && errno == EAGAIN);
                  gate.ready_and_go();
                  CHECK_OR_DIE(::write(pty.slave, "x", 1) < 0 && errno == EAGAIN);
                  CHECK_OR_DIE(get(pty.master) == "before");
                  put(pty.master, "\x11\n");
                  CHECK_OR_DIE(get(pty.slave) == "typed\n");
                  put(pty.slave, "after");
                  CHECK_OR_DIE(get(pty.master) == "after");
                  return 0;
                },
                {.generations = 2, .versions = 2}),
            0);
}

TEST_F(TerminalRoundtrip, ClosedAndUnopenedEnds) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const Pty closed, reopened;
                  put(closed.slave, "last words");
                  wait_until_processed();
                  ::close(closed.slave);
                  ::close(reopened.slave);
                  const int unopened = ::posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
                  CHECK_OR_DIE(unopened >= 0);
                  const std::string name = ::ptsname(unopened);
                  gate.ready_and_go();
                  CHECK_OR_DIE(get(closed.master) == "last words");
                  char byte;
                  CHECK_OR_DIE(::read(closed.master, &byte, 1) < 0 && errno == EIO);
                  const int slave = ::open(reopened.name.c_str(), O_RDWR | O_NOCTTY);
                  CHECK_OR_DIE(slave >= 0);
                  put(slave, "again");
                  CHECK_OR_DIE(get(reopened.master) == "again");
                  CHECK_OR_DIE(::read(unopened, &byte, 1) < 0 && errno == EAGAIN);
                  CHECK_OR_DIE(::open(name.c_str(), O_RDWR | O_NOCTTY) < 0 && errno == EIO);  // locked
                  CHECK_OR_DIE(::grantpt(unopened) == 0 && ::unlockpt(unopened) == 0 && name == ::ptsname(unopened));
                  CHECK_OR_DIE(::open(name.c_str(), O_RDWR | O_NOCTTY) >= 0);
                  return 0;
                },
                {.generations = 2, .versions = 2}),
            0);
}

TEST_F(TerminalRoundtrip, HungUpSlave) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const Pty pty;
                  ::close(pty.master);
                  gate.ready_and_go();
                  char byte;
                  CHECK_OR_DIE(::read(pty.slave, &byte, 1) == 0);
                  CHECK_OR_DIE(::write(pty.slave, "x", 1) < 0 && errno == EIO);
                  return 0;
                },
                {.generations = 2, .versions = 2}),
            0);
}

// Numbers that others have by then: the capsule gets a /dev/pts of its own.
TEST_F(TerminalRoundtrip, NumbersTakenMeanwhile) {
  std::vector<int> others;
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const Pty one, two;
                  one.no_echo();
                  put(one.master, "line\n");
                  wait_until_processed();
                  gate.ready_and_go();
                  CHECK_OR_DIE(one.name == ::ttyname(one.slave) && two.name == ::ptsname(two.master));
                  CHECK_OR_DIE(get(one.slave) == "line\n");
                  const Pty three;
                  CHECK_OR_DIE(three.name != one.name && three.name != two.name);
                  const int again = ::open(two.name.c_str(), O_RDWR | O_NOCTTY);
                  put(again, "seen");
                  CHECK_OR_DIE(get(two.master) == "seen");
                  return 0;
                },
                {.generations = 3,
                 .restore =
                     [&others](RestoreOptions&) {
                       for (int i = 0; i < 2; ++i) others.push_back(::posix_openpt(O_RDWR | O_NOCTTY));
                     }}),
            0);
  for (const int fd : others) ::close(fd);
}

std::atomic<int> interrupts = 0, resizes = 0;

// A session on a pseudo terminal: a shell, its job in the foreground, one in the background that has left it.
TEST_F(TerminalRoundtrip, SessionForegroundAndKeys) {
  EXPECT_EQ(roundtrip(
                [](Gate& gate) {
                  const Pty pty;
                  pty.no_echo();
                  int done[2];
                  CHECK_OR_DIE(::pipe(done) == 0);
                  const pid_t shell = ::fork();
                  if (shell == 0) {
                    ::close(pty.master);
                    CHECK_OR_DIE(::setsid() > 0 && ::ioctl(pty.slave, TIOCSCTTY, 0) == 0);
                    const pid_t daemon = ::fork();
                    if (daemon == 0) {
                      const int tty = ::open("/dev/tty", O_RDWR);
                      CHECK_OR_DIE(tty >= 0 && ::ioctl(tty, TIOCNOTTY) == 0);
                      ::close(tty);
                      put(done[1], "d");
                      for (;;) {
                        ::usleep(20'000);
                        const int again = ::open("/dev/tty", O_RDWR);
                        CHECK_OR_DIE(again < 0 && errno == ENXIO);
                      }
                    }
                    const pid_t job = ::fork();
                    if (job == 0) {
                      ::setpgid(0, 0);
                      ::signal(SIGTTOU, SIG_IGN);
                      CHECK_OR_DIE(::tcsetpgrp(pty.slave, ::getpid()) == 0);
                      struct sigaction action {};
                      action.sa_handler = [](int signal) { signal == SIGINT ? ++interrupts : ++resizes; };
                      ::sigaction(SIGINT, &action, nullptr);
                      ::sigaction(SIGWINCH, &action, nullptr);
                      const int tty = ::open("/dev/tty", O_RDWR);
                      CHECK_OR_DIE(tty >= 0);
                      put(done[1], "j");
                      while (interrupts == 0 || resizes == 0) ::usleep(5'000);
                      CHECK_OR_DIE(::tcgetpgrp(tty) == ::getpid() && ::tcgetsid(pty.slave) == ::getppid());
                      put(tty, "interrupted");
                      CHECK_OR_DIE(get(tty) == "go on\n");
                      ::_exit(7);
                    }
                    int status = 0;
                    CHECK_OR_DIE(::waitpid(job, &status, 0) == job && WIFEXITED(status) && WEXITSTATUS(status) == 7);
                    CHECK_OR_DIE(::waitpid(daemon, &status, WNOHANG) == 0 && ::kill(daemon, SIGKILL) == 0);
                    CHECK_OR_DIE(::waitpid(daemon, &status, 0) == daemon && WIFSIGNALED(status));
                    ::_exit(0);
                  }
                  CHECK_OR_DIE(get(done[0], 2).size() == 2);
                  gate.ready_and_go();
                  const winsize size{30, 90, 0, 0};
                  CHECK_OR_DIE(::ioctl(pty.master, TIOCSWINSZ, &size) == 0);
                  ::usleep(20'000);
                  put(pty.master, "\x03");
                  CHECK_OR_DIE(get(pty.master) == "interrupted");
                  put(pty.master, "go on\n");
                  int status = 0;
                  CHECK_OR_DIE(::waitpid(shell, &status, 0) == shell && status == 0);
                  return 0;
                },
                {.generations = 3, .versions = 2}),
            0);
}

}  // namespace
}  // namespace icp::test

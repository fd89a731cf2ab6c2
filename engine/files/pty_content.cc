// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/pty_content.h"

#include <asm/ioctls.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <string_view>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr size_t kMostContent = 1 << 20;  // of a direction; the kernel's buffers hold some 70 KiB (drivers/tty)
constexpr size_t kPiece = 256;       // written to a master at once, which may wait: there is room when poll says so
constexpr size_t kUsualRoom = 8192;  // tty_buffer_set_limit() of drivers/tty/pty.c
constexpr auto kLongestWait = std::chrono::seconds(2);
constexpr cc_t kDisabled = 0;  // _POSIX_VDISABLE of Linux

short events_of(int fd, short wanted) {
  pollfd request{fd, wanted, 0};
  return ::poll(&request, 1, 0) > 0 ? request.revents : short{0};
}
// poll() brings what is still on its way to the reader's buffer first.
bool readable(int fd) { return (events_of(fd, POLLIN) & POLLIN) != 0; }
bool writable(int fd) { return (events_of(fd, POLLOUT) & POLLOUT) != 0; }

void wait_until(int slave, bool can_write) {
  const auto end = std::chrono::steady_clock::now() + kLongestWait;
  while (writable(slave) != can_write) {
    if (std::chrono::steady_clock::now() > end)
      throw_error(ErrorKind::kSystem, "a pseudo terminal does not take what was on its way");
    ::usleep(20);
  }
}

// Lines are for the reader as they are; their ends are known to the terminal alone.
bool by_lines(const TerminalSettings& settings) {
  return (settings.c_lflag & ICANON) != 0 && (settings.c_lflag & EXTPROC) == 0;
}

bool ends_line(const TerminalSettings& settings, char last) {
  const auto byte = static_cast<cc_t>(last);
  if (byte == '\n') return true;
  if (byte == kDisabled) return false;
  return byte == settings.c_cc[VEOL] || ((settings.c_lflag & IEXTEN) != 0 && byte == settings.c_cc[VEOL2]);
}

// ---- taking --------------------------------------------------------------------------------------------------------

std::string take_output(int master) {
  int packet = 0;
  ::ioctl(master, TIOCGPKT, &packet);
  std::string output;
  std::array<char, 16384> buffer;
  while (output.size() < kMostContent && readable(master)) {
    const ssize_t got = ::read(master, buffer.data(), buffer.size());
    if (got <= 0) break;
    // In packet mode each read has a byte in front: 0, or a status without data.
    const size_t skip = packet != 0 ? 1 : 0;
    if (packet == 0 || buffer[0] == TIOCPKT_DATA) output.append(buffer.data() + skip, static_cast<size_t>(got) - skip);
  }
  return output;
}

void take_lines(int slave, const TerminalSettings& settings, std::vector<pb::PtyInput>& input) {
  std::array<char, 8192> buffer;  // a line has 4096 bytes at most
  while (input.size() < kMostContent && readable(slave)) {
    const ssize_t got = ::read(slave, buffer.data(), buffer.size());
    if (got < 0) return;
    pb::PtyInput line;
    line.set_text(buffer.data(), static_cast<size_t>(got));
    line.set_end_of_file(got == 0 || !ends_line(settings, buffer[static_cast<size_t>(got) - 1]));
    input.push_back(std::move(line));
  }
}

// All that is there, in a mode without lines.
void take_rest(int slave, bool open_line, std::vector<pb::PtyInput>& input) {
  std::string text;
  std::array<char, 8192> buffer;
  while (text.size() < kMostContent && readable(slave)) {
    const ssize_t got = ::read(slave, buffer.data(), buffer.size());
    if (got <= 0) break;
    text.append(buffer.data(), static_cast<size_t>(got));
  }
  if (text.empty()) return;
  pb::PtyInput rest;
  rest.set_text(text);
  rest.set_open(open_line);
  input.push_back(std::move(rest));
}

// The same settings, under which a read gives what there is: byte by byte.
TerminalSettings without_lines(TerminalSettings settings) {
  settings.c_lflag &= ~static_cast<tcflag_t>(ICANON);
  settings.c_cc[VMIN] = 1;
  settings.c_cc[VTIME] = 0;
  return settings;
}

// ---- putting -------------------------------------------------------------------------------------------------------

// Four bytes with a meaning of ours that the content does not need.
struct Marks {
  cc_t end_of_file, literal, stop, start;
};

Marks find_marks(const TerminalSettings& settings, const std::vector<pb::PtyInput>& input) {
  std::array<bool, 256> used{};
  used[0] = used['\n'] = used[settings.c_cc[VEOL]] = used[settings.c_cc[VEOL2]] = true;
  for (const pb::PtyInput& line : input)
    for (const char byte : line.text()) used[static_cast<unsigned char>(byte)] = true;
  std::array<cc_t, 4> marks{};
  size_t found = 0;
  for (int byte = 255; byte > 0 && found < marks.size(); --byte)
    if (!used[static_cast<size_t>(byte)]) marks[found++] = static_cast<cc_t>(byte);
  if (found < marks.size()) throw_error(ErrorKind::kRefused, "a pseudo terminal holds input with all 256 byte values");
  return {marks[0], marks[1], marks[2], marks[3]};
}

// Takes what is written as it is: no echo, no signals, nothing translated; lines where the real settings have them.
TerminalSettings plain(const TerminalSettings& settings, const Marks& marks) {
  TerminalSettings quiet = settings;
  quiet.c_iflag = IXON;
  quiet.c_oflag &= ~static_cast<tcflag_t>(OPOST);
  quiet.c_lflag = by_lines(settings) ? ICANON | IEXTEN : 0;
  for (const int special : {VINTR, VQUIT, VERASE, VKILL, VSUSP, VREPRINT, VDISCARD, VWERASE})
    quiet.c_cc[special] = kDisabled;
  if ((settings.c_lflag & IEXTEN) == 0) quiet.c_cc[VEOL2] = kDisabled;
  quiet.c_cc[VEOF] = marks.end_of_file;
  quiet.c_cc[VLNEXT] = marks.literal;
  quiet.c_cc[VSTOP] = marks.stop;
  quiet.c_cc[VSTART] = marks.start;
  return quiet;
}

[[noreturn]] void throw_no_room() {
  throw_error(ErrorKind::kSystem, "a pseudo terminal has no room for what was on its way");
}

void write_to_master(int master, std::string_view bytes) {
  const auto end = std::chrono::steady_clock::now() + kLongestWait;
  while (!bytes.empty()) {
    if (std::chrono::steady_clock::now() > end) throw_no_room();
    if (!writable(master)) {
      ::usleep(20);
      continue;
    }
    const ssize_t written = ::write(master, bytes.data(), std::min(bytes.size(), kPiece));
    if (written < 0 && errno != EAGAIN && errno != EINTR) throw_errno("cannot write to a pseudo terminal");
    if (written > 0) bytes.remove_prefix(static_cast<size_t>(written));
  }
}

// The slave's description does not wait. Large pieces fill what the kernel allows a terminal; small ones go into
// buffers beyond that, which it keeps from earlier ones (tty_buffer_alloc(): those up to 256 bytes are not counted).
// Returns how much has found room within the time.
size_t write_to_slave(int slave, std::string_view bytes, std::chrono::steady_clock::duration longest) {
  const auto end = std::chrono::steady_clock::now() + longest;
  size_t total = 0;
  for (bool large = true; total < bytes.size();) {
    const size_t left = bytes.size() - total;
    const ssize_t written = ::write(slave, bytes.data() + total, large ? left : std::min(left, kPiece));
    if (written < 0 && errno != EAGAIN && errno != EINTR) throw_errno("cannot write to a pseudo terminal");
    if (written > 0) {
      total += static_cast<size_t>(written);
      continue;
    }
    if (!large && std::chrono::steady_clock::now() > end) break;
    if (!large) ::usleep(20);
    large = !large;
  }
  return total;
}

// Lets the kernel make as many small buffers as it does for a terminal that programs have filled with short lines.
void make_room(int master, int slave) {
  const std::string piece(kPiece, ' ');
  size_t written = 0;
  for (ssize_t done = 0; written < kMostContent && (done = ::write(slave, piece.data(), piece.size())) > 0;)
    written += static_cast<size_t>(done);
  const auto end = std::chrono::steady_clock::now() + kLongestWait;
  for (size_t read = 0; read < written && std::chrono::steady_clock::now() < end;) read += take_output(master).size();
}

void put_output(int master, int slave, const std::string& output) {
  if (output.empty()) return;
  if (output.size() > kUsualRoom) make_room(master, slave);
  if (write_to_slave(slave, output, kLongestWait) < output.size()) throw_no_room();
}

std::string typed(const TerminalSettings& settings, const Marks& marks, const std::vector<pb::PtyInput>& input) {
  std::string bytes;
  const bool lines = by_lines(settings);
  for (const pb::PtyInput& line : input) {
    const std::string& text = line.text();
    for (size_t i = 0; i < text.size(); ++i) {
      const bool end = i + 1 == text.size() && !line.end_of_file() && !line.open();
      if (lines && !end && ends_line(settings, text[i])) bytes += static_cast<char>(marks.literal);
      bytes += text[i];
    }
    if (lines && line.end_of_file()) bytes += static_cast<char>(marks.end_of_file);
  }
  return bytes;
}

void start_output(int slave) {
  ::ioctl(slave, TCXONC, TCOOFF);  // whoever stopped it: TCOON ends only what TCOOFF began
  ::ioctl(slave, TCXONC, TCOON);
}

// What is written is taken up by a kernel thread, under the settings of that moment. A stop character after it shows
// when that has happened: then nothing can be written any more.
void type(int master, int slave, const Marks& marks, std::string bytes) {
  bytes += static_cast<char>(marks.stop);
  write_to_master(master, bytes);
  wait_until(slave, false);
}

void drop_status(int master) {
  char status;
  while ((events_of(master, POLLPRI) & POLLPRI) != 0 && ::read(master, &status, 1) == 1) {
  }
}

}  // namespace

TerminalSettings terminal_settings(int fd) {
  TerminalSettings settings{};
  if (::ioctl(fd, TCGETS2, &settings) != 0) throw_errno("cannot read the settings of a terminal");
  return settings;
}

void set_terminal_settings(int fd, const TerminalSettings& settings) {
  if (::ioctl(fd, TCSETS2, &settings) != 0) throw_errno("cannot change the settings of a terminal");
}

TerminalSettings settings_from(const std::string& bytes) {
  TerminalSettings settings{};
  if (bytes.size() != sizeof settings)
    throw_error(ErrorKind::kImage, "a terminal has {} bytes of settings instead of {}", bytes.size(), sizeof settings);
  std::memcpy(&settings, bytes.data(), sizeof settings);
  return settings;
}

std::string settings_bytes(const TerminalSettings& settings) {
  return {reinterpret_cast<const char*>(&settings), sizeof settings};
}

PtyContent peek_pty(int master, int slave) {
  const TerminalSettings settings = terminal_settings(master);
  PtyContent content;
  content.output = take_output(master);
  const bool lines = by_lines(settings), look = lines || readable(slave) || settings.c_cc[VMIN] > 1;
  if (lines) take_lines(slave, settings, content.input);
  // An unfinished line cannot be seen until lines do not count.
  if (look) set_terminal_settings(master, without_lines(settings));
  if (look) take_rest(slave, lines, content.input);
  content.stopped = !writable(slave);
  if (!content.output.empty() || !content.input.empty()) {
    fill_pty(master, slave, settings, content);
    drop_status(master);
  } else if (look) {
    set_terminal_settings(master, settings);
  }
  return content;
}

void fill_pty(int master, int slave, const TerminalSettings& settings, const PtyContent& content) {
  const Marks marks = find_marks(settings, content.input);
  set_terminal_settings(master, plain(settings, marks));
  start_output(slave);
  if (!content.input.empty()) {
    type(master, slave, marks, typed(settings, marks, content.input));
    start_output(slave);
  }
  put_output(master, slave, content.output);
  const bool by_key = content.stopped && (settings.c_iflag & IXON) != 0;
  if (by_key) type(master, slave, marks, {});
  set_terminal_settings(master, settings);
  if (content.stopped && !by_key) ::ioctl(slave, TCXONC, TCOOFF);
}

}  // namespace icp

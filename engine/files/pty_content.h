// SPDX-License-Identifier: GPL-2.0-or-later
// What is on its way through a pseudo terminal, and its settings.
#pragma once

#include <asm/termbits.h>

#include <string>
#include <vector>

#include "engine/image/image.pb.h"

namespace icp {

using TerminalSettings = ::termios2;  // not with <termios.h> in one file

// Either end. Throw kSystem.
TerminalSettings terminal_settings(int fd);
void set_terminal_settings(int fd, const TerminalSettings& settings);
// As an image has them; throws kImage for anything of another size.
TerminalSettings settings_from(const std::string& bytes);
std::string settings_bytes(const TerminalSettings& settings);

struct PtyContent {
  std::string output;               // from the slave to the master
  std::vector<pb::PtyInput> input;  // from the master to the slave
  bool stopped = false;             // output, by ^S or TCOOFF
};

// Copies what is in flight. The kernel has no look at it that does not take it, so it is taken and put back: the caller
// sees to it that nobody else reads or writes meanwhile, and that this is not broken off (run_to_the_end). `slave`: a
// description of the caller's own, O_NONBLOCK. Where nothing is in flight nothing is changed.
PtyContent peek_pty(int master, int slave);
// Puts `content` into an empty pseudo terminal, which then has `settings`.
void fill_pty(int master, int slave, const TerminalSettings& settings, const PtyContent& content);

}  // namespace icp

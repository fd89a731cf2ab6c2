// SPDX-License-Identifier: GPL-2.0-or-later
// Pseudo terminals with both ends in the capsule. All that there is of one is in the image of its master.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& pty_master_kind();
const FileKind& pty_slave_kind();

inline constexpr uint32_t kMostPtys = 1 << 20;  // numbers are minors of devices

// N of /dev/pts/N; nothing for another device.
std::optional<uint32_t> pty_number(dev_t device);
dev_t pty_device(uint32_t number);
// The terminal that a descriptor leads to, whether opened by its name or as /dev/tty (TIOCGDEV). Nothing when it has
// been hung up, or is none.
std::optional<dev_t> terminal_device(int fd);
// The device that /proc/PID/stat has as tty_nr.
dev_t device_of_tty_nr(int tty_nr);

}  // namespace icp

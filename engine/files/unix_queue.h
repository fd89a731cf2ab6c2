// SPDX-License-Identifier: GPL-2.0-or-later
// What waits in Unix sockets to be read.
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"

namespace icp {

struct QueuedMessage {
  std::string data;
  std::string sender;           // name of who sent it, as in pb::UnixSocket.name; may be ""
  std::vector<UniqueFd> files;  // SCM_RIGHTS
  std::optional<ucred> credentials;
};

// Copies what waits in a socket, which stays there: one entry a datagram or packet; of a stream, one for all bytes but
// for those with descriptors or credentials. Throws kRefused for a message that is too long.
std::vector<QueuedMessage> peek_socket(int fd);

// Cuts what waits in a stream into equal parts, as few as fill a send buffer of `room` bytes (SO_SNDBUF) when they are
// sent one by one: the kernel counts with each what it needs for it. All in one part when none would do.
std::vector<std::string> cut_to_fill(const std::string& data, size_t room);

// "/path", or "" and so on for a zero byte, without the zero that may end a path.
std::string unix_name(const char* path, size_t bytes);

}  // namespace icp

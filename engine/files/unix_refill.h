// SPDX-License-Identifier: GPL-2.0-or-later
// Queues of Unix sockets, filled again.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <string>
#include <vector>

#include "engine/files/file_kind.h"

namespace icp {

constexpr int kMostUnixFiles = 253;  // SCM_MAX_FD

struct UnixAddress {
  sockaddr_un un{};
  socklen_t length = 0;

  // Throws kImage for a name that none can have.
  UnixAddress(const pb::OpenFile& file, const std::string& name);
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&un); }
};

// `value` as getsockopt() gave it, which is twice what setsockopt() wants (socket(7)); as far as the system lets it.
void set_unix_buffer(int fd, int force, int option, uint32_t value);

// The descriptors that travel with an entry of a socket's queue. Throws kImage when one is not to be had.
std::vector<int> files_of_entry(const RestoreContext& context, const pb::OpenFile& file, int entry);
bool carries_files(const pb::UnixSocket& socket);
// Whether it matters which process sends what waits there.
bool carries_credentials(const pb::UnixSocket& socket);

// sendmsg(2) of part of an entry, to `to` if given.
ssize_t send_entry(int sender, const std::string& data, size_t done, const std::vector<int>& files,
                   const UnixAddress* to);

struct UnixEnds {
  int receiver = -1, sender = -1;             // descriptors of the agent
  const pb::OpenFile* sender_file = nullptr;  // null: no process has that end
};

// Puts the data that waited in `file` back, by sending it from the other end: from the processes that had sent it,
// where that is to be seen and they are there (context.senders), else from the agent.
void refill(const RestoreContext& context, const pb::OpenFile& file, const UnixEnds& ends);

}  // namespace icp

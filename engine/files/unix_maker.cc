// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/unix_maker.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <span>

#include "engine/base/error.h"
#include "engine/files/made_inside.h"

namespace icp {

uint32_t maker_of(const pb::OpenFile& file, const pb::OpenFile* peer) {
  const pb::UnixSocket& here = file.unix_socket();
  if (peer == nullptr || here.peer_pid() == peer->unix_socket().peer_pid()) return here.peer_pid();
  const pb::UnixSocket& there = peer->unix_socket();
  const bool accepted_there = here.name().empty() && !there.name().empty();
  const uint32_t first = accepted_there ? there.peer_pid() : here.peer_pid();
  return first != 0 ? first : std::max(here.peer_pid(), there.peer_pid());
}

std::optional<std::pair<UniqueFd, UniqueFd>> pair_made_by(const RestoreContext& context, uint32_t pid, int type) {
  RemoteProcess* const maker = process_of(context, pid);
  if (maker == nullptr) return {};
  const RemoteAddr at = maker->reserve(2 * sizeof(int));
  maker->call("socketpair", SYS_socketpair, {AF_UNIX, static_cast<uint64_t>(type | SOCK_CLOEXEC), 0, at.value});
  const auto numbers = maker->read_value<std::array<int, 2>>(at);
  return std::pair<UniqueFd, UniqueFd>{maker->take_away_fd(numbers[0]), maker->take_away_fd(numbers[1])};
}

UniqueFd client_made_by(RemoteProcess& process, const UnixAddress& address, int type) {
  // Not blocking: a full queue must not hold us up.
  const auto number = static_cast<uint64_t>(
      process.call("socket", SYS_socket, {AF_UNIX, static_cast<uint64_t>(type | SOCK_CLOEXEC | SOCK_NONBLOCK), 0}));
  const RemoteAddr at =
      process.stage(std::as_bytes(std::span(reinterpret_cast<const char*>(address.get()), address.length)));
  process.call("connect of a Unix socket", SYS_connect, {number, at.value, address.length});
  UniqueFd client = process.take_away_fd(static_cast<int64_t>(number));
  ::fcntl(client.get(), F_SETFL, ::fcntl(client.get(), F_GETFL) & ~O_NONBLOCK);
  return client;
}

}  // namespace icp

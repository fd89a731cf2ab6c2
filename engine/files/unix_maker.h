// SPDX-License-Identifier: GPL-2.0-or-later
// Connected Unix sockets made by the process that SO_PEERCRED is to name.
#pragma once

#include <optional>
#include <utility>

#include "engine/files/file_kind.h"
#include "engine/files/unix_refill.h"

namespace icp {

// Whom both ends are to name. Where the ends differ it is the one that made the connection, at the end that was
// accepted, and has its listener's name: servers ask for it. 0: nobody of the capsule. `peer` may be null.
uint32_t maker_of(const pb::OpenFile& file, const pb::OpenFile* peer);

// A pair that the process makes; nothing when it is not there.
std::optional<std::pair<UniqueFd, UniqueFd>> pair_made_by(const RestoreContext& context, uint32_t pid, int type);
// A socket that the process connects to the address.
UniqueFd client_made_by(RemoteProcess& process, const UnixAddress& address, int type);

}  // namespace icp

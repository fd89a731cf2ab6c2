// SPDX-License-Identifier: GPL-2.0-or-later
// TCP connections within a capsule where there is no repair mode (nobody is root): taken when all that was written has
// arrived, and made again by connecting for real.
#pragma once

#include <cstdint>
#include <string>

#include "engine/files/file_kind.h"
#include "engine/files/inet_survey.h"

namespace icp {

// Why a connection with both ends in the capsule cannot be saved in this way just now; empty when it can. `fd` is the
// end that `facts` are of, `other` the facts of its other end.
std::string cannot_reconnect(int fd, const TcpFacts& facts, const TcpFacts& other);

// Makes both ends again, at the addresses of the two files, and puts them into the context; the data that waited comes
// with the side effects. Listening sockets of the image must be there already. Throws Error.
void reconnect(RestoreContext& context, ImageFiles all, const pb::OpenFile& one, const pb::OpenFile& other);

// One whose other end nobody had accepted (TcpSocket.pending_of): connects to the listening socket once more, which is
// there already.
UniqueFd connect_pending(RestoreContext& context, const pb::OpenFile& file);

}  // namespace icp

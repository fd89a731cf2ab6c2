// SPDX-License-Identifier: GPL-2.0-or-later
// Netlink sockets (routes, uevents, sock_diag ...): protocol, port, groups and options. They are at rest: a question
// whose answer has not been read yet is waited for. What happens between the version and the restart they do not hear.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& netlink_socket_kind();

}  // namespace icp

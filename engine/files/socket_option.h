// SPDX-License-Identifier: GPL-2.0-or-later
// Options of internet sockets, setsockopt(2).
#pragma once

#include <sys/socket.h>

#include <functional>

#include "engine/files/file_kind.h"

namespace icp {

using SocketOptions = google::protobuf::RepeatedPtrField<pb::SocketOption>;

// What options an end has that an unused socket of the same kind has not. `connected`: leaves those out that a
// connection changes by itself.
void capture_socket_options(int fd, bool connected, SocketOptions& options);
// Refuses what only root could set again (unless the agent is root), and filters that cannot be read.
void check_socket_options(FileScan& scan, Description& description);
// Throws kImage (naming `file`) for an option that capture_socket_options() never gives, or a value that does not fit.
void restore_socket_options(const pb::OpenFile& file, const SocketOptions& options, int fd);

// Of a connection, when it is one again: before, it would narrow what the other end may send.
void restore_window_clamp(const SocketOptions& options, int fd);

// SO_REUSEADDR as it was, where making the socket has set or cleared it.
void restore_reuse_address(const SocketOptions& options, int fd);

void capture_socket_buffers(int fd, pb::SocketBuffers& buffers);
void restore_socket_buffers(const pb::SocketBuffers& buffers, int fd);

int socket_option(int fd, int level, int name);  // 0 on failure
void set_socket_option(int fd, int level, int name, int value, const char* what);

// A socket's user matters to firewalls and to those who may end its leftovers. Effective user while it is made.
UniqueFd make_inet_socket(const RestoreContext& context, int domain, int type, int protocol = 0);

int first_unprivileged_port();  // net.ipv4.ip_unprivileged_port_start
// Only root may bind ports below that: the agent must not do it for the image of a user.
// Throws kImage.
void check_port(const RestoreContext& context, const pb::OpenFile& file, uint16_t port);

// Of a rehearsal without a network of its own: the running job has the socket's port.
void warn_left_out(const pb::OpenFile& file);

// bind(2), also to a port that other sockets of the image have: the program may have let them share it (SO_REUSEPORT)
// and have turned that off since, as apply_side_effects() does again. False, with errno, when it fails.
bool bind_shared(RestoreContext& context, int fd, const sockaddr_storage& name, socklen_t length, uint16_t port);

// The same, and while the port is taken it calls `retry` and tries again, for some seconds of a restore in all: the
// job's former processes may be about to go.
bool bind_with_patience(RestoreContext& context, int fd, const InetAddress& address, int domain,
                        const std::function<void()>& retry = {});

// The network namespace a socket belongs to (inode), 0 if the kernel does not tell.
uint64_t network_namespace_of(int fd);
uint64_t own_network_namespace();

}  // namespace icp

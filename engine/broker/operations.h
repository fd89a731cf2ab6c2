// SPDX-License-Identifier: GPL-2.0-or-later
// The broker's operations as they are carried out, with root's rights. Who may ask for them is broker_server.cc's.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>

#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"
#include "engine/broker/broker.h"

namespace icp::privileged {

struct InitOrder {
  int program = -1;  // descriptor of icp-init
  int channel = -1, carrier = -1;
  pid_t like = 0;
  int process = -1;  // hold_process(like): whose limits it gets, whatever has that number by then
  int mounts = -1;   // mounts_of(like), if any
  const Identity* identity = nullptr;
  bool own_terminals = false;
  bool sibling = false;            // a child of this process's parent, which the worker is
  bool in_user_namespace = false;  // which takes the place of root's rights; `identity` is this process's own
  JoinGroups join;
};
pid_t start_init(const InitOrder& order);

// /proc/PID: the process, whatever has its number later. kGone when it has ended.
UniqueFd hold_process(pid_t pid);
// The mount namespace of a process, held by its directory in /proc, if it is another one than this process's and was
// made by root (job_container/tmpfs and others of Slurm's plugins); else no descriptor: in one of a user namespace
// every path may be the user's making, and root is to follow none.
UniqueFd mounts_of(int process);

// A descriptor of `path`, which is executed later by a user who may not reach it by its name.
UniqueFd open_program(const std::string& path);

struct IpcHelperOrder {
  int ipc_namespace = -1;   // descriptor
  int user_namespace = -1;  // of the user's own making, which gives the right to enter the other; -1: root has it
  const Identity* identity = nullptr;  // without a user namespace: whose rights the helper has
  std::function<void(pid_t)> join;
  UniqueFd* handle = nullptr;  // gets the helper's pidfd, without a user namespace
};
// A helper process (serve_ipc) in the namespace; returns its socket. It ends when that is closed. With a user namespace
// it is nobody's child, for nobody waits for it; else of a caller that ignores SIGCHLD.
UniqueFd start_ipc_helper(const IpcHelperOrder& order);

// Which file a descriptor (with an empty path) or a path leads to. The server of its file system, which may be a user's
// or away, is not asked: all that is here already.
std::optional<InodeId> inode_at(int directory, const char* path);
std::set<InodeId> mapped_outside(const std::set<InodeId>& inodes, std::span<const pid_t> inside);
std::set<InodeId> held_open(const std::set<InodeId>& inodes, const std::set<pid_t>& except);

UniqueFd track(icp_track& track);
bool has_module();
// In repair mode a socket may take a port that others have, and listen at it (SK_FORCE_REUSE of the kernel). That is
// taken back before these return, and a socket that its owner has made a listener meanwhile is closed.
void set_tcp_repair(int socket, int mode);
// Binds a closed socket in repair mode, as connections of one port may be. An errno value; 0: it is bound.
int bind_in_repair(int socket, const InetAddress& address, int domain);
// Throws kPermission when the socket listens, which it may not have done before, and closes it.
void refuse_listener(int socket);
void widen_tcp_buffer(int socket, int option, size_t bytes);

}  // namespace icp::privileged

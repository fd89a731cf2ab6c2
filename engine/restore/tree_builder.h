// SPDX-License-Identifier: GPL-2.0-or-later
// Fresh namespaces with an init, and the bare processes of a tree in them.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image.pb.h"
#include "engine/restore/tree_plan.h"
#include "engine/trace/remote_process.h"
#include "engine/trace/tracee.h"

namespace icp {

// A process under construction: a copy of icp-init with the right pid, parent, session and group, stopped, all signals
// blocked, with the user's ids and CAP_CHECKPOINT_RESTORE.
struct Seed {
  std::unique_ptr<Tracee> leader;
  std::unique_ptr<RemoteProcess> remote;
  pid_t pid = 0;  // the agent's view
};

// The namespaces of one capsule (pid, IPC, mount) and their init, held by ptrace while processes are made. The
// destructor kills everything in them, unless release() has been called.
class TreeBuilder {
 public:
  // Starts icp-init as `identity`, in the cgroups and with the limits of `like` (0: the caller's).
  // `own_terminals`: see Broker::start_init.
  TreeBuilder(const std::string& init_path, pid_t like, const Identity& identity, bool own_terminals = false);
  ~TreeBuilder();
  TreeBuilder(const TreeBuilder&) = delete;
  TreeBuilder& operator=(const TreeBuilder&) = delete;

  pid_t init_pid() const { return init_pid_; }
  UniqueFd root() const;  // O_PATH of the capsule's root directory

  // Number, in every seed, of the socket whose other end is agent_socket().
  int process_socket() const { return process_socket_; }
  int agent_socket() const { return agent_socket_.get(); }

  // Makes all processes of the plan, helpers included. Each is shown to `made`, init (1) first, before anything is
  // forked from it; `new_session` is called for each that has just made a session, before it forks any other.
  using Made = std::function<void(uint32_t pid, RemoteProcess& remote)>;
  void build(const pb::Capsule& capsule, const std::vector<TreeStep>& steps, const Made& made,
             const std::function<void(uint32_t pid)>& new_session);
  RemoteProcess& init() { return *init_.remote; }
  Seed& seed(uint32_t pid) { return seeds_.at(pid); }
  // Null: there is none of this number, or it is a process by now.
  RemoteProcess* process_of(uint32_t pid) const {
    const auto found = seeds_.find(pid);
    return found == seeds_.end() ? nullptr : found->second.remote.get();
  }
  // Ends the helpers: sessions and groups keep their numbers. Process groups must have been joined (build does).
  void end_helpers(const std::vector<TreeStep>& steps);
  // Ends a seed as a zombie with this wait(2) status and name (icp-init's own when empty).
  void end_as_zombie(uint32_t pid, int status, const std::string& name = {});
  // A seed's parent can wait for it as continued (WCONTINUED).
  void continue_untold(uint32_t pid);
  // Makes a thread with number `tid` in a process; it is stopped in its first instruction.
  std::unique_ptr<Tracee> make_thread(RemoteProcess& process, uint32_t tid);

  // Lets init do its work; returns the socket on which it reports.
  UniqueFd release();

 private:
  void start_init(const std::string& path, pid_t like, const Identity& identity, bool own_terminals);
  static uint64_t shared_flags(const TreeStep& step, const pb::Process* process);
  // `process`: null for a helper.
  void fork_seed(const TreeStep& step, int exit_signal, const pb::Process* process);
  pid_t clone_with_pid(RemoteProcess& by, uint64_t flags, uint32_t pid, int exit_signal);

  pid_t init_pid_ = 0;
  UniqueFd init_channel_;
  UniqueFd agent_socket_;
  int process_socket_ = -1;
  Seed init_;
  user_regs_struct init_regs_{};
  uint64_t init_mask_ = 0;
  std::map<uint32_t, Seed> seeds_;
};

}  // namespace icp

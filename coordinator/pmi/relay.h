// SPDX-License-Identifier: GPL-2.0-or-later
// Between the tasks of a step on one node and their process manager in slurmstepd (PMI-1, srun --mpi=pmi2).
//
// The manager of a restarted step knows nothing: not what the tasks have put into the key-value space, which others may
// ask for at any time, nor who waits in a barrier. So each task's PMI_FD is one end of a socket pair, and this process
// of the job, which is saved and restored with it, has the other end and the real connection. After a restart it puts
// again what was put, lets all tasks pass one barrier so that all nodes have it, and asks again what had no answer.
//
// A barrier that some tasks have passed and others not would never end if these alone asked again: the relay answers
// them. The relays of several nodes hear of each other's barriers by way of their agents, as those of PMIx do.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <string>

#include "coordinator/protocol/packet.h"
#include "engine/base/unique_fd.h"

namespace icp::pmi {

// How the relays' agents call the only kind of barrier there is.
inline constexpr std::string_view kBarrierKey = "f0";

// Not thread-safe: one thread runs it.
class Relay {
 public:
  // `control`: the agent's socket, with a packet for each client there is to be (kPmiClient), and one after a restart.
  explicit Relay(UniqueFd control) : control_(std::move(control)) {}
  // Until the agent has ended and the clients have, too.
  void run();

 private:
  enum class State { kLive, kPuts, kBarrier, kFinalize, kRaw };
  struct Client {
    UniqueFd fd, server;  // the latter is the first thing that the task sends
    std::string from_client, from_server, to_client, to_server;
    std::string pending;                      // asked since the last answer
    std::map<std::string, std::string> kept;  // what a new manager is to be told, by what it is about
    uint64_t barriers = 0;                    // passed
    bool introduced = false, finalized = false;
    State state = State::kLive;
    std::string next;  // kPuts: up to which of `kept` it is
  };

  void on_control();
  void new_manager(const protocol::Packet& packet);
  void tell_barriers();
  bool read_client(Client& client);
  void read_server(Client& client);
  void take_requests(Client& client);
  void on_answer(Client& client, const std::string& line);
  void note(Client& client, const std::string& answer);
  void catch_up(Client& client);
  void go_on(Client& client);

  UniqueFd control_;
  bool agent_gone_ = false, restarted_ = false;
  uint64_t barriers_ = 0;  // that some task of the step has passed, as far as is known
  std::list<Client> clients_;
};

}  // namespace icp::pmi

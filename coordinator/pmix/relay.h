// SPDX-License-Identifier: GPL-2.0-or-later
// Between the tasks of a step on one node and Slurm's PMIx server in slurmstepd.
//
// A PMIx client never connects again: after a restart it must find, on the descriptor it had, a server that knows what
// it has told the old one. So its connection is to this relay, which is a process of the job: it is saved and restored
// with the job, and with it all that is on its way. What leads out of the job are the relay's connections to the
// server. After a restart these are gone; told of the new step's server, the relay introduces each client to it, says
// again what a server keeps (what was published, events registered for), and asks again what had no answer yet.
//
// A fence is a collective. One that some clients have been told the end of, and others not, would never end if these
// alone asked again: the relay answers it. The relays of several nodes hear of each other's by way of their agents.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <string>

#include "coordinator/pmix/message.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/unique_fd.h"

namespace icp::pmix {

struct Server {
  std::string host;
  uint16_t port = 0;
  std::string name_space;
};

// The server in a PMIX_SERVER_URI* ("NAME;tcp4://127.0.0.1:1234"); throws std::runtime_error when it is none.
Server parse_server(const std::string& uri, const std::string& name_space);

// Not thread-safe: one thread runs it.
class Relay {
 public:
  // `listener`: where clients connect. `control`: the agent's socket, with a packet for each server there is to be.
  Relay(UniqueFd listener, UniqueFd control) : listener_(std::move(listener)), control_(std::move(control)) {}
  // Until the agent has ended and the clients have, too.
  void run();

 private:
  struct Request {
    uint32_t tag = 0;
    std::string body;
    uint8_t command = 0;
    uint64_t fence = 0;     // how manieth of this kind the client asks for, from 1
    bool answered = false;  // kept for the next server; its answer then is for nobody
  };
  struct Client {
    UniqueFd fd, server;
    Hello hello;
    bool introduced = false;  // to some server: hello is whole
    bool connected = false;   // to this server, past the introduction
    bool told = false;        // that it is connected
    bool finalized = false;   // it may go
    uint32_t index = 0;       // as the server knows it
    std::string from_client, from_server, to_client, to_server;
    std::deque<Request> requests;
    std::map<std::string, uint64_t> fences;  // begun, by what is asked
  };
  struct Fence {
    uint64_t ended = 0;
    std::string answer{"\x02\x00", 2};  // to the last one that has; before the first: success
  };

  void on_control();
  void new_server(const protocol::Packet& packet);
  void tell_fences();
  void accept_client();
  void connect(Client& client);
  void lose_server(Client& client);
  void repeat_requests(Client& client);
  bool read_client(Client& client);
  void read_server(Client& client);
  void take_introduction(Client& client);
  void on_request(Client& client, Message message);
  void on_answer(Client& client, Message message);
  void send(Client& client, const Request& request);
  bool has_ended(const Request& fence);

  UniqueFd listener_, control_;
  Server server_;
  bool agent_gone_ = false;
  std::list<Client> clients_;
  std::map<std::string, Fence> fences_;          // by what is asked
  std::map<std::string, uint64_t> ended_there_;  // by key of that: on other nodes
};

}  // namespace icp::pmix

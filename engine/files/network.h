// SPDX-License-Identifier: GPL-2.0-or-later
// TCP connections between capsules, and to the outside: what the caller of a session or a restore decides.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/files/inet_address.h"

namespace icp {

// One end of a TCP connection whose other end is not in the same capsule. Addresses are those of the checkpoint.
struct ConnectionEnd {
  InetAddress local, remote;
  uint32_t received = 0;  // TCP's number of the first byte that this end has not received yet; 0 before the stop
};

// A connection that leads out of the job.
enum class ExternalTcp {
  kRefuse,  // no checkpoint
  kReset,   // saved as one that the other end has reset: the program gets ECONNRESET after a restart
  kKeep,    // of a version with which the job ends: goes on where it was. Of others, or without root: kReset
};

class HeldConnections;

// At a checkpoint.
struct NetworkScope {
  ExternalTcp external = ExternalTcp::kRefuse;
  HeldConnections* held = nullptr;  // with kKeep, at the capture: takes the connections
  // Set when the capsule is one of several of a job. Given all ends that lead out of this capsule, returns those whose
  // other ends (local and remote exchanged) are in another one. Called in the thread of the session:
  //   stopped == false  while the processes run, before anything is stopped; perhaps several times
  //   stopped == true   once in every version, also with no ends. All processes of this capsule are stopped, and what
  //                     its connections have not delivered yet has been copied. Must not return before that holds for
  //                     all capsules of the job: what they have received is copied after it, so that nothing is missed.
  // What it throws ends the version; the processes run on.
  std::function<std::vector<ConnectionEnd>(const std::vector<ConnectionEnd>& ends, bool stopped)> inside_job;
};

// At a restart.
struct NetworkRestore {
  // Old and new address of hosts, as text without a port ("10.0.0.7"). An address of an end in this capsule that is not
  // in it and not one of this host becomes this host's first global one.
  std::vector<std::pair<std::string, std::string>> addresses;
  // Connections to other capsules of which the caller knows better: local and remote address, of the checkpoint and
  // from now on. Several capsules that come from one host, or come to one, cannot be told from each other by their
  // hosts' addresses alone.
  std::map<std::pair<InetAddress, InetAddress>, std::pair<InetAddress, InetAddress>> connections;
  // Set when the capsule is one of several of a job. Called once, also with no ends, when the capsule is built but has
  // neither run nor sent a packet; given its ends that lead to other capsules, returns the other ends of them. Must not
  // return before all capsules of the job are that far: a host answers packets for a connection that it does not have
  // yet by a reset. What it throws ends the restore.
  std::function<std::vector<ConnectionEnd>(const std::vector<ConnectionEnd>& ends)> meet;
};

}  // namespace icp

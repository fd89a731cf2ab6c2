// SPDX-License-Identifier: GPL-2.0-or-later
// In a task before its exec: what it says of Slurm's PMIx server (srun --mpi=pmix), and the relay that its program
// finds in place of it. See coordinator/pmix/relay.h for why.
#pragma once

#include <string>

#include "coordinator/protocol/packet.h"
#include "spank/slurm_api.h"

namespace icp::spank {

// Adds the server of the task's environment, if it has one.
void describe_pmix(spank_t handle, protocol::Packet& ready);

// Does what the answer says: the program's environment names the relay, and the first task of the node starts it.
// Closes the packet's descriptors.
void use_pmix_relay(spank_t handle, protocol::Packet& answer);

// The same for PMI-1 (coordinator/pmi/relay.h): `pmi` is PMI_FD as Slurm has set it, and leads to the relay afterwards.
void use_pmi_relay(const std::string& pmi, protocol::Packet& answer);

}  // namespace icp::spank

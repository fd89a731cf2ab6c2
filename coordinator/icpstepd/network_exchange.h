// SPDX-License-Identifier: GPL-2.0-or-later
// TCP connections between the nodes of a step: what libicp asks its caller, asked on by way of the coordinator.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/icpstepd/coordinator_link.h"
#include "coordinator/protocol/coordinator.pb.h"
#include "engine/files/inet_address.h"
#include "engine/files/network.h"
#include "engine/image/image.pb.h"

namespace icp {

google::protobuf::RepeatedPtrField<net::ConnectionEnd> to_message(const std::vector<ConnectionEnd>& ends);
// Ends whose addresses are none are left out.
std::vector<ConnectionEnd> from_message(const google::protobuf::RepeatedPtrField<net::ConnectionEnd>& ends);

// Those of `mine` whose other end is in `others`.
std::vector<ConnectionEnd> inside(const std::vector<ConnectionEnd>& mine, const std::vector<ConnectionEnd>& others);

// The addresses of this host in the time of a checkpoint, as far as they are other ones now.
google::protobuf::RepeatedPtrField<net::NewAddress> moved_addresses(const pb::Capsule& capsule);
// For NetworkRestore: what all capsules of the step said. Of this capsule's own addresses only what it said itself
// (`mine`) holds: another capsule may come from the same host, and be on another one now.
std::vector<std::pair<std::string, std::string>> address_texts(
    const google::protobuf::RepeatedPtrField<net::NewAddress>& all,
    const google::protobuf::RepeatedPtrField<net::NewAddress>& mine, const pb::Capsule& capsule);

// The ends of connections that lead out of a capsule, and where they can be reached from now on.
google::protobuf::RepeatedPtrField<net::ConnectionEnd> ends_to_restore(const pb::Capsule& capsule);
using Ends = std::pair<InetAddress, InetAddress>;  // local and remote
// For NetworkRestore: which addresses the connections of `mine` get, given their other ends. Throws kRefused when the
// two hosts of a connection have no addresses for each other.
std::map<Ends, Ends> new_connections(const google::protobuf::RepeatedPtrField<net::ConnectionEnd>& mine,
                                     const google::protobuf::RepeatedPtrField<net::ConnectionEnd>& others);

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// TCP connections between the nodes of a step: what libicp asks its caller, asked on by way of the coordinator.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "coordinator/icpstepd/coordinator_link.h"
#include "coordinator/protocol/coordinator.pb.h"
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
// For RestoreOptions.
std::vector<std::pair<std::string, std::string>> address_texts(
    const google::protobuf::RepeatedPtrField<net::NewAddress>& addresses);

}  // namespace icp

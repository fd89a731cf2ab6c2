// SPDX-License-Identifier: GPL-2.0-or-later
// Capsules of several hosts that are to share one. Each has its own pids, System V objects and mounts there, but they
// share the host's ports, its abstract Unix names and its files.
#pragma once

#include <string>
#include <vector>

#include "engine/image/image.pb.h"

namespace icp {

struct CapsuleOnHost {
  std::string name;  // of the capsule, for messages
  std::string host;  // where it was taken
  const pb::Capsule* capsule = nullptr;
};

// Throws kRefused, naming two capsules and what both of them have, if they cannot run on one host: both listen on a
// port, or have the same connection, Unix name or file in /dev/shm. What capsules of one and the same host have, they
// shared there already, and that is no obstacle. Pure computation; what it cannot know (ports of other programs) fails
// later, before anything runs.
void check_shared_host(const std::vector<CapsuleOnHost>& capsules);

}  // namespace icp

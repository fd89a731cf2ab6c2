// SPDX-License-Identifier: GPL-2.0-or-later
// What an image remembers of the host it was taken on.
#pragma once

#include "engine/image/image.pb.h"

namespace icp {

// Facts of this host; the vdso is the calling process's own (every process of a host has the same).
pb::HostFacts this_host();

}  // namespace icp

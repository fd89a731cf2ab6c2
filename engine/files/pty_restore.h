// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

// Whether the image's pseudo terminals want a /dev/pts of their own: other programs may have their numbers, or take
// them while they are made. The host's is kept where the step's own terminal is in it, unless it cannot be.
bool wants_own_ptys(const pb::Capsule& capsule);
// Makes pseudo terminals with their numbers, settings and content.
void create_pty_masters(RestoreContext& context, ImageFiles files);
void create_pty_slaves(RestoreContext& context, ImageFiles files);
// When all slaves are open: what keeps others from opening them.
void settle_pty_masters(RestoreContext& context, ImageFiles files);

}  // namespace icp

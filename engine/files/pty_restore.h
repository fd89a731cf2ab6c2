// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

// Whether another program here has the number of a pseudo terminal of the image.
bool pty_number_taken(const pb::Capsule& capsule);
// Makes pseudo terminals with their numbers, settings and content.
void create_pty_masters(RestoreContext& context, ImageFiles files);
void create_pty_slaves(RestoreContext& context, ImageFiles files);
// When all slaves are open: what keeps others from opening them.
void settle_pty_masters(RestoreContext& context, ImageFiles files);

}  // namespace icp

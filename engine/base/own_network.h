// SPDX-License-Identifier: GPL-2.0-or-later
// A network of the calling process's own, in which every address and every port is free.
#pragma once

namespace icp {

// Enters a new network namespace that takes any internet address for its own; so do processes and threads started from
// now on. A process that is not root enters a user namespace with it, which only one without further threads can. False
// where the host does not allow that; nothing has changed then. Called before anything else is opened; there is no way
// back.
bool enter_own_network();

// Whether enter_own_network() has succeeded in this process, or in the one it was forked from.
bool in_own_network();

}  // namespace icp

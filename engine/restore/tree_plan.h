// SPDX-License-Identifier: GPL-2.0-or-later
// How a process tree with its sessions and process groups can be made again, fork by fork.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/image/image.pb.h"

namespace icp {

// One step of rebuilding a tree. Numbers are pids in the capsule; 1 is its init.
struct TreeStep {
  enum Kind {
    kFork,         // `by` forks `pid`, which is its child
    kForkSibling,  // `by` forks `pid` with CLONE_PARENT: a child of by's parent
    kForkHelper,   // `by` forks `pid`, which is not in the image and ends before anything runs
    kSetsid,       // `pid` makes its session
    kSetpgid,      // `pid` joins (or, if equal, makes) process group `group`
    kEndHelper,    // helper `pid` ends; `by`, its parent, reaps it (init reaps by itself)
  };
  Kind kind{};
  uint32_t by = 0, pid = 0, group = 0;
  int exit_signal = 0;  // kForkHelper by another than init: its own, and so that of siblings it forks
};

// Sessions are inherited by fork only, so a process must be forked by one that was in its session at that time: by its
// parent before or after the parent's own setsid(); by a helper with the number of a session leader that has ended; or,
// for an orphan, through a helper that a living leader forks. A process that a subreaper was handed when its parent
// ended is forked as a sibling by the leader of its session, when that is the subreaper's child, too, or a helper in
// its place. A process group whose leader has ended gets a helper too.
//
// Throws kRefused with a sentence if a tree cannot be rebuilt so, kImage if it is no tree at all (a missing parent, a
// cycle, a number twice or out of range). Pure computation: also used while the job still runs, to refuse before the
// stop.
std::vector<TreeStep> plan_tree(const pb::Capsule& capsule);

}  // namespace icp

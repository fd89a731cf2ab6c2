// SPDX-License-Identifier: GPL-2.0-or-later
// What a thread does not share with its process's main thread (StoppedProcess::own): capture and restore.
#pragma once

#include "engine/base/identity.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Whether a process shares working directory, root directory and umask with its parent (CLONE_FS): pb::Process.fs_of.
void capture_shared_directories(const std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states);

// Fills credentials, directories and namespaces of the threads of `state`, whose numbers are there already.
void capture_own(const StoppedProcess& process, pb::Process& state);

// The place in `state` of the thread that thread `index` is to be made by; 0: the main one. Throws kImage for one that
// is not there before it.
size_t maker_of(const pb::Process& state, size_t index);
// In a new thread, while it may do everything: parts it from the one that made it.
void part_from_maker(RemoteProcess& remote, const pb::Thread& state, const Identity& identity);

}  // namespace icp

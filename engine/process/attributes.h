// SPDX-License-Identifier: GPL-2.0-or-later
// Small attributes of a process: personality, parent-death signal, dumpable,
// subreaper, transparent huge pages, out-of-memory score.
#pragma once

#include "engine/base/finding.h"
#include "engine/base/identity.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

void check_attributes(const ProcessRef& process, Findings& findings);
void capture_attributes(const StoppedProcess& process, CallBatch& calls, pb::Process& state);
// With root's rights still.
void restore_attributes(RemoteProcess& remote, const pb::Process& state);
// What a change of ids clears, with the user's rights: dumpable; and each thread's parent-death signal.
void restore_what_ids_clear(RemoteProcess& remote, const pb::Process& state);
void restore_death_signal(RemoteProcess& remote, const pb::Process& process, const pb::Thread& state);
// Of a thread other than the main one, whose answers are delivered first.
void capture_death_signal(CallBatch& calls, const pb::Process& process, pb::Thread& state);

}  // namespace icp

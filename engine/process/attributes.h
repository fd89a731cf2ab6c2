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
// With the user's rights: the working directory must be one the user may enter, and the parent-death signal and
// dumpable are reset by a change of credentials. `dry`: no directory is made.
void restore_user_attributes(RemoteProcess& remote, const pb::Process& state, const Identity& identity, bool dry);
// Those again, of which a change of ids has no more to say.
void restore_what_ids_clear(RemoteProcess& remote, const pb::Process& state);

}  // namespace icp

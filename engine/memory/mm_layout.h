// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernel knows of an address space besides its mappings: where code, data, heap, stack, arguments and
// environment lie, the auxiliary vector, the program file.
#pragma once

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Fills all of `out` but the mappings, vdso and store name; the end of the heap is asked for in the process unless it
// is there already.
void capture_mm_layout(StoppedProcess& process, pb::AddressSpace& out);

// Throws kImage for a layout that the kernel would not take (prctl_set_mm_map's rules).
void check_mm_layout(const pb::AddressSpace& memory);

// Sets the layout in a process with prctl(PR_SET_MM, PR_SET_MM_MAP). `exe_fd`: the program's number there; the file of
// the old program must not be mapped any more. Needs root in the process, and scratch.
void restore_mm_layout(RemoteProcess& remote, const pb::AddressSpace& memory, int exe_fd);

}  // namespace icp

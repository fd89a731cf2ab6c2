// SPDX-License-Identifier: GPL-2.0-or-later
// System calls that had done a part when a stop interrupted them: they go on to their whole.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <optional>

namespace icp {

// A call as the program made it (`regs`: the instruction pointer behind it), and what it has done so far: bytes, or
// messages.
struct PartialCall {
  user_regs_struct regs{};
  uint64_t done = 0;
};

// A blocking write() that has moved a part returns it when a signal comes, and so it does at our stop, which no program
// expects. Such a thread gets, instead of the short count, a call for the rest: made by a few instructions in the
// unused end of its vdso (where the time-outs of interrupted_calls.h lie, too), which add the part to the rest's result
// and go back behind the program's own call with its own registers. They need no agent. A signal that comes meanwhile
// ends the call with what has been done by then, as it would have without us; so do errors, and the end of a stream.
//
// Calls to which that can happen, with descriptors that block: write, writev, sendto, sendmsg, sendmmsg, sendfile and
// copy_file_range; recvfrom and recvmsg with MSG_WAITALL, recvmmsg; getrandom, and read from such devices. A short
// count is left as it is where the kernel has other reasons for one (SO_RCVTIMEO, SO_SNDTIMEO), where more than a few
// buffers are left to go, and where there is no more room: for some ten threads of a process at a time.

// The call that a thread has stopped in, with these registers, if it is to go on; `live` then has the registers for
// that, with which an interrupted call is made again unless a signal handler is to run. Else `live` is changed only if
// the thread has left such a call's instructions half-way: it is then behind them. Finds the calls of earlier agents,
// too.
std::optional<PartialCall> continue_partial_call(pid_t pid, pid_t tid, user_regs_struct& live);

// For a restored thread, whose registers in the image are PartialCall::regs: `regs` get what it goes on with. Where
// that cannot be, the call returns its part. The process's descriptors and memory must be there.
void restore_partial_call(pid_t tid, uint64_t done, user_regs_struct& regs);

// First word of a slot with a time-out.
inline constexpr uint64_t kTimeoutMark = 0x74756f656d697469;  // "itimeout"
// Bytes below `end` (32-byte aligned, in a process's vdso) that such instructions take; 0: none end there.
size_t partial_call_bytes(pid_t pid, uint64_t end);

// Where the unused end of a process's vdso ends, below the stubs for remote calls; 0: there is no vdso.
uint64_t end_of_vdso_room(pid_t pid);

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// A way back for a thread whose agent dies in the middle of a remote call.
#pragma once

#include <sys/user.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/trace/remote_addr.h"

namespace icp {

// Machine code for remote calls: `syscall`, and behind it rt_sigreturn(2). While the agent lives it stops the thread
// after the first instruction. If it dies, the kernel lets the thread run on, and the second call takes every register,
// the signal mask and the extended state from the frame at the stack pointer: the thread goes on where it was stopped
// first.
inline constexpr std::array<uint8_t, 9> kReturnStub{
    0x0f, 0x05,                    // syscall
    0xb8, 0x0f, 0x00, 0x00, 0x00,  // mov $15 (rt_sigreturn), %eax
    0x0f, 0x05,                    // syscall
};

// Bytes of a frame for a thread stopped with these registers; it is to lie at `at`, 64-byte aligned, and the stack
// pointer during calls is return_stack_pointer(at). A system call that was interrupted is set to be made again; it must
// not be one that restart_syscall(2) would go on with, since rt_sigreturn makes the kernel forget those (use the
// registers for the image).
std::vector<std::byte> make_return_frame(RemoteAddr at, const user_regs_struct& regs, uint64_t signal_mask,
                                         std::span<const std::byte> xstate);
uint64_t return_stack_pointer(RemoteAddr frame);

}  // namespace icp

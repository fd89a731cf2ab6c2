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

// Several calls in one go, ended by the same rt_sigreturn(2): the code needs no tracer to come to its end. Entered with
// the first of ebp table entries (CallEntry) in rbx and the stack pointer of the frame; its end is kReturnStub.
inline constexpr std::array<uint8_t, 55> kBatchStub{
    0x48, 0x8b, 0x03,              // again: mov (%rbx),%rax
    0x48, 0x8b, 0x7b, 0x08,        // mov 8(%rbx),%rdi
    0x48, 0x8b, 0x73, 0x10,        // mov 16(%rbx),%rsi
    0x48, 0x8b, 0x53, 0x18,        // mov 24(%rbx),%rdx
    0x4c, 0x8b, 0x53, 0x20,        // mov 32(%rbx),%r10
    0x4c, 0x8b, 0x43, 0x28,        // mov 40(%rbx),%r8
    0x4c, 0x8b, 0x4b, 0x30,        // mov 48(%rbx),%r9
    0x0f, 0x05,                    // syscall
    0x48, 0x8b, 0x4b, 0x38,        // mov 56(%rbx),%rcx
    0x48, 0x89, 0x01,              // mov %rax,(%rcx)
    0x48, 0x83, 0xc3, 0x40,        // add $64,%rbx
    0xff, 0xcd,                    // dec %ebp
    0x75, 0xd4,                    // jnz again
    0xeb, 0x02,                    // jmp over the next one
    0x0f, 0x05,                    // syscall: kReturnStub
    0xb8, 0x0f, 0x00, 0x00, 0x00,  // mov $15 (rt_sigreturn), %eax
    0x0f, 0x05,                    // syscall
};
// What they take of the end of a vdso: zeros in front tell it from the tail of a table.
inline constexpr size_t kStubGap = 16;
inline constexpr size_t kCallStubBytes = kStubGap + kBatchStub.size();
inline constexpr uint64_t kBatchAfterCall = 29;  // offset of the instruction behind the syscall of the loop

struct CallEntry {
  uint64_t number;
  std::array<uint64_t, 6> arguments;
  uint64_t result_at;  // where the result goes
};
static_assert(sizeof(CallEntry) == 64);

// Where a frame of so many bytes goes: below the thread's stack pointer and red zone, 64-byte aligned, as a signal's
// would.
RemoteAddr return_frame_place(uint64_t stack_pointer, size_t bytes);

// How many bytes a frame with an extended state of so many takes.
size_t return_frame_bytes(size_t xstate_bytes);

// Bytes of a frame for a thread stopped with these registers; it is to lie at `at`, 64-byte aligned, and the stack
// pointer during calls is return_stack_pointer(at). A system call that was interrupted is set to be made again; it must
// not be one that restart_syscall(2) would go on with, since rt_sigreturn makes the kernel forget those (use the
// registers for the image).
std::vector<std::byte> make_return_frame(RemoteAddr at, const user_regs_struct& regs, uint64_t signal_mask,
                                         std::span<const std::byte> xstate);
uint64_t return_stack_pointer(RemoteAddr frame);

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/trace/return_frame.h"

#include <ucontext.h>

#include <cstring>

namespace icp {
namespace {

// arch/x86/include/uapi/asm/sigcontext.h and ucontext.h.
constexpr uint32_t kXstateMagic1 = 0x46505853, kXstateMagic2 = 0x46505845;
constexpr size_t kSoftwareBytes = 464;  // offset of struct _fpx_sw_bytes in the extended state
constexpr size_t kXstateHeader = 512;
constexpr unsigned long kUcFpXstate = 1, kUcSigcontextSs = 2, kUcStrictRestoreSs = 4;
constexpr int64_t kRestartSys = 512, kRestartNoHand = 514;
constexpr uint64_t kSyscallBytes = 2;
constexpr size_t kFrameAlignment = 64;  // XRSTOR's
constexpr uint64_t kRedZone = 128;      // System V ABI, x86-64: below the stack pointer and still in use

struct SoftwareBytes {
  uint32_t magic1, extended_size;
  uint64_t xfeatures;
  uint32_t xstate_size;
};

// arch/x86/include/asm/sigframe.h, struct rt_sigframe. The kernel's ucontext is a prefix of glibc's up to the mask.
struct SignalFrame {
  uint64_t return_address;
  ucontext_t context;
};

constexpr size_t kXstateOffset = (sizeof(SignalFrame) + 63) / 64 * 64;

user_regs_struct restarted(user_regs_struct regs) {
  if (static_cast<int64_t>(regs.orig_rax) < 0) return regs;
  const int64_t result = -static_cast<int64_t>(regs.rax);
  if (result >= kRestartSys && result <= kRestartNoHand) {
    regs.rax = regs.orig_rax;
    regs.rip -= kSyscallBytes;
  }
  return regs;
}

void set_registers(const user_regs_struct& regs, greg_t (&to)[NGREG]) {
  const auto set = [&to](int index, uint64_t value) { to[index] = static_cast<greg_t>(value); };
  set(REG_R8, regs.r8);
  set(REG_R9, regs.r9);
  set(REG_R10, regs.r10);
  set(REG_R11, regs.r11);
  set(REG_R12, regs.r12);
  set(REG_R13, regs.r13);
  set(REG_R14, regs.r14);
  set(REG_R15, regs.r15);
  set(REG_RDI, regs.rdi);
  set(REG_RSI, regs.rsi);
  set(REG_RBP, regs.rbp);
  set(REG_RBX, regs.rbx);
  set(REG_RDX, regs.rdx);
  set(REG_RAX, regs.rax);
  set(REG_RCX, regs.rcx);
  set(REG_RSP, regs.rsp);
  set(REG_RIP, regs.rip);
  set(REG_EFL, regs.eflags);
  set(REG_CSGSFS, (regs.cs & 0xffff) | (regs.ss & 0xffff) << 48);
}

}  // namespace

RemoteAddr return_frame_place(uint64_t stack_pointer, size_t bytes) {
  return {(stack_pointer - kRedZone - bytes) / kFrameAlignment * kFrameAlignment};
}

std::vector<std::byte> make_return_frame(RemoteAddr at, const user_regs_struct& regs, uint64_t signal_mask,
                                         std::span<const std::byte> xstate) {
  std::vector<std::byte> bytes(kXstateOffset + xstate.size() + sizeof kXstateMagic2);
  SignalFrame frame{};
  frame.context.uc_flags = kUcFpXstate | kUcSigcontextSs | kUcStrictRestoreSs;
  frame.context.uc_stack.ss_flags = 0x7777;  // invalid: the alternate stack stays as it is
  set_registers(restarted(regs), frame.context.uc_mcontext.gregs);
  frame.context.uc_mcontext.fpregs = reinterpret_cast<fpregset_t>(at.value + kXstateOffset);
  std::memcpy(&frame.context.uc_sigmask, &signal_mask, sizeof signal_mask);
  std::memcpy(bytes.data(), &frame, sizeof frame);

  std::byte* state = bytes.data() + kXstateOffset;
  std::memcpy(state, xstate.data(), xstate.size());
  // The features that ptrace offers stand where the signal frame's own description goes.
  SoftwareBytes software{kXstateMagic1, static_cast<uint32_t>(xstate.size() + sizeof kXstateMagic2), 0,
                         static_cast<uint32_t>(xstate.size())};
  if (xstate.size() > kXstateHeader)
    std::memcpy(&software.xfeatures, state + kSoftwareBytes, sizeof software.xfeatures);
  std::memcpy(state + kSoftwareBytes, &software, sizeof software);
  std::memcpy(state + xstate.size(), &kXstateMagic2, sizeof kXstateMagic2);
  return bytes;
}

uint64_t return_stack_pointer(RemoteAddr frame) { return frame.value + sizeof(uint64_t); }

}  // namespace icp

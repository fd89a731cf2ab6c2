// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/trace/return_frame.h"

#include <cpuid.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "engine/base/mutex.h"
#include "engine/trace/xstate_layout.h"

namespace icp {
namespace {

// arch/x86/include/uapi/asm/sigcontext.h and ucontext.h.
constexpr uint32_t kXstateMagic1 = 0x46505853, kXstateMagic2 = 0x46505845;
constexpr size_t kSoftwareBytes = 464;  // offset of struct _fpx_sw_bytes in the extended state
constexpr uint32_t kXstateLeaf = 0xd;   // CPUID
constexpr unsigned kFirstExtended = 2;  // features before that lie in the legacy area
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

size_t ask_xstate_size(uint64_t features) {
  size_t size = kXstateMinimum;
  for (unsigned feature = kFirstExtended; feature < 63; ++feature) {
    unsigned bytes = 0, offset = 0, flags = 0, unused = 0;
    if ((features & ~kTileBit & 1ull << feature) == 0 ||
        __get_cpuid_count(kXstateLeaf, feature, &bytes, &offset, &flags, &unused) == 0) {
      continue;
    }
    size = std::max<size_t>(size, offset + bytes);
  }
  return size;
}

// Bytes of the extended state of a thread that has used no dynamic feature, the header and all. Asked of the processor
// once: CPUID leaves a virtual machine, which takes as long as all else that is done for a thread.
size_t default_xstate_size(uint64_t features) {
  static std::map<uint64_t, size_t> known;
  static Mutex mutex;
  const MutexLock lock(mutex);
  const auto [size, is_new] = known.try_emplace(features, 0);
  if (is_new) size->second = ask_xstate_size(features);
  return size->second;
}

uint64_t word_at(std::span<const std::byte> bytes, size_t offset) {
  uint64_t value = 0;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

// Makes of a ptrace view of the extended state one that rt_sigreturn(2) takes whole; behind its `size` bytes is room
// for the second magic number. If that is not where the kernel expects it, SSE's state alone is restored. It expects it
// at the end of what the thread has room for (since Linux 6.8), or at the size the frame says, which must not be more
// than that (before). A thread whose tiles are not in use may have room for them or not: both ends are marked then, the
// first one where the tiles would be.
void describe_xstate(std::byte* state, size_t size) {
  const std::span<const std::byte> view(state, size);
  SoftwareBytes software{kXstateMagic1, static_cast<uint32_t>(size + sizeof kXstateMagic2), 0,
                         static_cast<uint32_t>(size)};
  if (size > kXstateMinimum) {
    // The features that ptrace offers stand where the signal frame's own description goes; those in use, in the header.
    software.xfeatures = word_at(view, kSoftwareBytes);
    const size_t without_tiles = default_xstate_size(software.xfeatures);
    if ((word_at(view, kXstateHeader) & kTileBit) == 0 && without_tiles < size) {
      software.xstate_size = static_cast<uint32_t>(without_tiles);
      std::memcpy(state + without_tiles, &kXstateMagic2, sizeof kXstateMagic2);
    }
  }
  std::memcpy(state + kSoftwareBytes, &software, sizeof software);
  std::memcpy(state + size, &kXstateMagic2, sizeof kXstateMagic2);
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

size_t return_frame_bytes(size_t xstate_bytes) { return kXstateOffset + xstate_bytes + sizeof kXstateMagic2; }

std::vector<std::byte> make_return_frame(RemoteAddr at, const user_regs_struct& regs, uint64_t signal_mask,
                                         std::span<const std::byte> xstate) {
  std::vector<std::byte> bytes(return_frame_bytes(xstate.size()));
  SignalFrame frame{};
  frame.context.uc_flags = kUcFpXstate | kUcSigcontextSs | kUcStrictRestoreSs;
  frame.context.uc_stack.ss_flags = 0x7777;  // invalid: the alternate stack stays as it is
  set_registers(restarted(regs), frame.context.uc_mcontext.gregs);
  frame.context.uc_mcontext.fpregs = reinterpret_cast<fpregset_t>(at.value + kXstateOffset);
  std::memcpy(&frame.context.uc_sigmask, &signal_mask, sizeof signal_mask);
  std::memcpy(bytes.data(), &frame, sizeof frame);

  std::byte* state = bytes.data() + kXstateOffset;
  std::memcpy(state, xstate.data(), xstate.size());
  describe_xstate(state, xstate.size());
  return bytes;
}

uint64_t return_stack_pointer(RemoteAddr frame) { return frame.value + sizeof(uint64_t); }

}  // namespace icp

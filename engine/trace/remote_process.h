// SPDX-License-Identifier: GPL-2.0-or-later
// System calls in another process, and access to its memory.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"
#include "engine/trace/borrowed_stack.h"
#include "engine/trace/remote_addr.h"
#include "engine/trace/tracee.h"

namespace icp {

// Memory of a process, all of it or throws.
void read_memory(pid_t pid, RemoteAddr from, std::span<std::byte> to);

// Runs system calls in a stopped thread, through a syscall instruction that its process already maps. The
// thread's registers are changed by every call: whoever wants them back saves them before and sets them after
// Tracee::restop(). All signals stay blocked in the thread from the first call on. One thread of the agent only.
//
// Scratch memory for arguments: set_scratch() or map_scratch(); `stage` hands it out from the start after each
// `reset_scratch`.
class RemoteProcess {
 public:
  // `pid`: the process for memory access, the caller's view.
  RemoteProcess(Tracee& thread, pid_t pid, RemoteAddr syscall_instruction, RemoteAddr batch_stub = {});

  Tracee& thread() { return *thread_; }
  pid_t pid() const { return pid_; }
  RemoteAddr batch_stub() const { return batch_stub_; }  // of CallBatch; 0: none
  // The same process and scratch, but calls run in another of its (stopped) threads.
  RemoteProcess on_thread(Tracee& other) const;
  // The same thread and scratch, but calls begin with another instruction, in front of a syscall of its own.
  RemoteProcess at_instruction(RemoteAddr code) const;
  // A copy made by fork: the same instruction and scratch, another process.
  RemoteProcess on_process(Tracee& leader, pid_t pid) const;

  // Result of the call, -errno on failure. Throws only if the thread dies.
  int64_t syscall(long number, std::initializer_list<uint64_t> arguments = {});
  // The same, throwing Error "<what> in process <pid>: <errno text>" on failure.
  int64_t call(const char* what, long number, std::initializer_list<uint64_t> arguments = {});

  // Reads or writes memory with process_vm_readv/writev, all of it or throws.
  void read(RemoteAddr from, std::span<std::byte> to) const { read_memory(pid_, from, to); }
  void write(RemoteAddr to, std::span<const std::byte> from);
  template <typename T>
  T read_value(RemoteAddr from) const {
    T value;
    read(from, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  template <typename T>
  void write_value(RemoteAddr to, const T& value) {
    write(to, std::as_bytes(std::span(&value, 1)));
  }

  // Scratch memory of the target for arguments and results.
  void set_scratch(RemoteAddr at, size_t bytes);
  // Maps (unmaps) scratch memory of its own, anywhere.
  void map_scratch(size_t bytes);
  void unmap_scratch();
  // From now on the thread finds back to these registers should the agent die during a call (return_frame.h): the ones
  // it was stopped with, for the image. Needs a return stub as the syscall instruction. What that takes is borrowed
  // from the thread's stack with the first call; where nothing can be written there, calls stay unprotected.
  void protect_calls(const user_regs_struct& regs, uint64_t signal_mask);
  // Puts back what lay on the stack, until the next call. The thread has its own registers again: with those of a call
  // it would not find back should the agent die.
  void give_back();
  // Copies the bytes in (16-byte aligned) and returns where they lie. Throws when scratch is full.
  RemoteAddr stage(std::span<const std::byte> bytes);
  RemoteAddr stage_string(const std::string& text);
  template <typename T>
  RemoteAddr stage_value(const T& value) {
    return stage(std::as_bytes(std::span(&value, 1)));
  }
  RemoteAddr reserve(size_t bytes);  // uninitialised
  void reset_scratch() { scratch_used_ = 0; }

  // The thread or process that the last call made (clone3, fork), as the agent sees it; 0 when none.
  pid_t last_child() const { return last_child_; }

  // Sends descriptor `local` of the agent into the process over its end `channel` of a socket whose
  // other end is `agent_end`; returns its number there (the lowest free one, close-on-exec).
  int send_fd(int agent_end, int channel, int local);
  // The same, then moved to exactly `want`.
  void send_fd_to(int agent_end, int channel, int local, int want, bool cloexec);
  // A duplicate of the process's descriptor in the agent (pidfd_getfd).
  UniqueFd take_fd(int remote_fd) const;
  // The same, and the process has it no more.
  UniqueFd take_away_fd(int64_t remote_fd);

 private:
  Tracee* thread_;
  pid_t pid_;
  RemoteAddr instruction_, batch_stub_;
  user_regs_struct base_{};  // registers the calls are derived from
  RemoteAddr scratch_{};
  size_t scratch_size_ = 0, scratch_used_ = 0;
  struct WayBack {
    user_regs_struct regs;
    uint64_t signal_mask;
  };
  void borrow_stack();
  std::optional<WayBack> way_back_;  // of protected calls
  std::shared_ptr<BorrowedStack> borrowed_;
  uint64_t call_stack_ = 0;  // stack pointer during protected calls, 0: they are not, or not yet
  pid_t last_child_ = 0;
};

// Address of a syscall instruction in a mapping of the process: in the vdso if there is one, else in any
// executable mapping. Throws kRefused when none is found.
RemoteAddr find_syscall_instruction(pid_t pid);

// Where remote calls of a process are made; 0: nowhere.
struct CallStubs {
  RemoteAddr single;  // kReturnStub of return_frame.h
  RemoteAddr batch;   // kBatchStub

  // Whether an instruction at `address` is one of theirs.
  bool contain(RemoteAddr address) const;
};

// Puts the stubs into the unused end of the process's vdso, a private copy of one page, unless they are there already:
// as many as there is room for. `maps` are the process's mappings; it must be stopped by the caller.
CallStubs install_call_stubs(pid_t pid, const std::vector<MapsEntry>& maps);

}  // namespace icp

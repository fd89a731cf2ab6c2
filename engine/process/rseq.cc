// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/rseq.h"

#include <linux/rseq.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "engine/base/error.h"
#include "engine/trace/peek.h"

namespace icp {
namespace {

// include/uapi/linux/ptrace.h; named here because <sys/ptrace.h> and <linux/ptrace.h> exclude each other.
constexpr int kGetRseqConfiguration = 0x420f;
struct RseqConfiguration {
  uint64_t address;
  uint32_t size, signature, flags, pad;
};

}  // namespace

void find_rseq(Tracee& thread, pid_t, ThreadStart& start) {
  RseqConfiguration configuration{};
  if (::ptrace(static_cast<__ptrace_request>(kGetRseqConfiguration), thread.tid(), sizeof configuration,
               &configuration) < 0)
    return;
  start.rseq = configuration.address;
  start.rseq_len = configuration.size;
  start.rseq_signature = configuration.signature;
}

void leave_rseq_section(pid_t pid, ThreadStart& start) {
  const bool in_system_call = static_cast<int64_t>(start.live.orig_rax) >= 0;  // which no section may make
  if (start.rseq == 0 || in_system_call) return;
  uint64_t section_address = 0;
  rseq_cs section{};
  if (!peek(pid, start.rseq + offsetof(struct rseq, rseq_cs), section_address) || section_address == 0 ||
      !peek(pid, section_address, section))
    return;
  if (start.live.rip - section.start_ip < section.post_commit_offset) start.live.rip = section.abort_ip;
}

void restore_rseq(RemoteProcess& remote, const pb::Thread& thread) {
  if (thread.rseq() == 0) return;
  remote.call("rseq", SYS_rseq, {thread.rseq(), thread.rseq_len(), 0, thread.rseq_signature()});
}

}  // namespace icp

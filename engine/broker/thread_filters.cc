// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/broker/thread_filters.h"

#include <sys/ptrace.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/process/seccomp.h"
#include "engine/process/stopped_tree.h"

namespace icp::privileged {
namespace {

constexpr uint64_t kMostFilters = 1024;  // of a thread; the kernel's limit is 32768 instructions and 4 a filter
// Of a process, whose threads may each have others: they are held in root's memory, and compared with each other.
constexpr size_t kMostDifferent = 4096, kMostInstructions = 1 << 20, kMostInChains = 1 << 20;

struct Metadata {  // struct seccomp_metadata of linux/ptrace.h
  uint64_t filter_off = 0, flags = 0;
};

// The n-th that was installed; nothing behind the last one.
bool read_filter(pid_t tid, uint64_t n, SeccompFilter& filter) {
  const auto request = [tid](int kind, uint64_t address, void* data) {
    return ::ptrace(static_cast<__ptrace_request>(kind), tid, address, data);
  };
  const long length = request(PTRACE_SECCOMP_GET_FILTER, n, nullptr);
  if (length < 0 && (errno == ENOENT || errno == EINVAL)) return false;  // no more, or none at all
  if (length < 0) throw_errno("cannot read the seccomp filters of thread {}", tid);
  filter.program.resize(static_cast<size_t>(length));
  if (request(PTRACE_SECCOMP_GET_FILTER, n, filter.program.data()) != length)
    throw_errno("cannot read the seccomp filters of thread {}", tid);
  Metadata metadata{n, 0};
  if (request(PTRACE_SECCOMP_GET_METADATA, sizeof metadata, &metadata) > 0)
    filter.flags = static_cast<uint32_t>(metadata.flags);
  return true;
}

// What was read of a process so far.
struct Known {
  std::vector<std::shared_ptr<const SeccompFilter>> filters;
  size_t instructions = 0, in_chains = 0;

  bool too_many() const {
    return filters.size() > kMostDifferent || instructions > kMostInstructions || in_chains > kMostInChains;
  }
};

SeccompChain read_chain(pid_t tid, Known& known) {
  SeccompChain chain;
  SeccompFilter filter;
  for (uint64_t n = 0; n < kMostFilters && read_filter(tid, n, filter); ++n) {
    const auto same =
        std::find_if(known.filters.begin(), known.filters.end(), [&](const auto& one) { return *one == filter; });
    const bool is_new = same == known.filters.end();
    chain.push_back(is_new ? std::make_shared<const SeccompFilter>(filter) : *same);
    if (is_new) known.filters.push_back(chain.back());
    if (is_new) known.instructions += filter.program.size();
    ++known.in_chains;
    if (known.too_many())
      throw_error(ErrorKind::kRefused, "thread {}: its process has more seccomp filters than are looked at", tid);
  }
  return chain;
}

}  // namespace

ThreadFilters thread_filters(pid_t pid, const std::function<void()>& check) {
  std::vector<ProcessRef> found = find_processes({pid});
  if (found.empty() || found.front().zombie) throw_error(ErrorKind::kGone, "process {} has ended", pid);
  found.resize(1);
  InterruptedCalls calls;
  StoppedProcess process = stop_process(found.front(), calls, true);
  ThreadFilters filters;
  try {
    check();
    Known known;
    TimeoutPlaces places(pid);
    for (size_t i = 0; i < process.threads.size(); ++i) {
      const Tracee& thread = process.threads[i];
      FilteredThread& noted = filters[thread.tid()];
      noted.chain = read_chain(thread.tid(), known);
      avoid_restart_call(noted.chain, places, process.starts[i]);
      if (const auto* call = calls.hidden_call(thread.tid())) noted.interrupted = *call;
    }
  } catch (...) {
    resume_process(process);
    throw;
  }
  resume_process(process);
  return filters;
}

}  // namespace icp::privileged

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/limits.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/error.h"

namespace icp {
namespace {

rlimit get_limit(RemoteProcess& remote, uint32_t resource) {
  remote.reset_scratch();
  const RemoteAddr at = remote.stage_value(rlimit{});
  remote.call("getrlimit", SYS_prlimit64, {0, resource, 0, at.value});
  return remote.read_value<rlimit>(at);
}

void set_limit(RemoteProcess& remote, uint32_t resource, const rlimit& limit) {
  remote.reset_scratch();
  remote.call("setrlimit", SYS_prlimit64, {0, resource, remote.stage_value(limit).value, 0});
}

// Of one that is over, a second is left, in which its signal comes. 0 would be a limit of its own.
rlim_t less_used(rlim_t limit, rlim_t used) {
  if (limit == RLIM_INFINITY || limit == 0) return limit;
  return limit > used ? limit - used : 1;
}

}  // namespace

void capture_limits(const StoppedProcess& process, CallBatch& calls, pb::Process& state) {
  const rlim_t used = process.stat.cpu_ticks / static_cast<uint64_t>(::sysconf(_SC_CLK_TCK));  // seconds
  for (uint32_t resource = 0; resource < RLIM_NLIMITS; ++resource) {
    calls.ask<rlimit>("getrlimit", SYS_prlimit64, {0, resource, 0, CallBatch::kAnswer},
                      [&state, resource, used](const rlimit& limit) {
                        pb::Rlimit& saved = *state.add_rlimits();
                        saved.set_resource(resource);
                        saved.set_soft(resource == RLIMIT_CPU ? less_used(limit.rlim_cur, used) : limit.rlim_cur);
                        saved.set_hard(resource == RLIMIT_CPU ? less_used(limit.rlim_max, used) : limit.rlim_max);
                      });
  }
}

void widen_descriptor_limit(RemoteProcess& remote, const pb::Process& state) {
  uint64_t most = 0;
  for (const pb::FileDescriptor& fd : state.fds()) most = std::max(most, static_cast<uint64_t>(std::max(fd.fd(), 0)));
  rlimit limit = get_limit(remote, RLIMIT_NOFILE);
  limit.rlim_cur = limit.rlim_max;
  if (most + 16 > limit.rlim_max)
    throw_error(ErrorKind::kSystem, "process {} had descriptor {}, but the limit of open files here is {}", state.pid(),
                most, limit.rlim_max);
  set_limit(remote, RLIMIT_NOFILE, limit);
}

void restore_limits(RemoteProcess& remote, const pb::Process& state) {
  for (const pb::Rlimit& saved : state.rlimits()) {
    if (saved.resource() >= RLIM_NLIMITS)
      throw_error(ErrorKind::kImage, "process {} has a limit for unknown resource {}", state.pid(), saved.resource());
    const rlimit now = get_limit(remote, saved.resource());
    const rlim_t hard = std::min<rlim_t>(saved.hard(), now.rlim_max);
    set_limit(remote, saved.resource(), {std::min<rlim_t>(saved.soft(), hard), hard});
  }
}

}  // namespace icp

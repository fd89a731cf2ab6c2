// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/limits.h"

#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <sstream>
#include <string>

#include "engine/base/error.h"
#include "engine/base/procfs.h"

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

}  // namespace

// One read instead of sixteen calls in the stopped process. proc(5): a line of headings, then a line a resource by number, its
// name in 26 columns, then the soft and the hard limit.
void capture_limits(RemoteProcess& remote, pb::Process& state) {
  constexpr size_t kNameColumns = 26;
  std::istringstream lines(read_proc(remote.pid(), "limits"));
  std::string line, soft, hard;
  std::getline(lines, line);
  const auto number = [](const std::string& text) {
    return text == "unlimited" ? RLIM_INFINITY : std::stoull(text);
  };
  for (uint32_t resource = 0; resource < RLIM_NLIMITS; ++resource) {
    if (!std::getline(lines, line) || line.size() <= kNameColumns ||
        !(std::istringstream(line.substr(kNameColumns)) >> soft >> hard)) {
      throw_error(ErrorKind::kSystem, "/proc/{}/limits has no resource {}", remote.pid(), resource);
    }
    pb::Rlimit& saved = *state.add_rlimits();
    saved.set_resource(resource);
    saved.set_soft(number(soft));
    saved.set_hard(number(hard));
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

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/own_ids.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "engine/base/unique_fd.h"

namespace icp {

const char* map_own_ids(const std::string& process, uid_t uid, gid_t gid) {
  for (const auto& [name, text] : {std::pair<const char*, std::string>{"setgroups", "deny"},
                                   {"uid_map", fmt::format("{0} {0} 1", uid)},
                                   {"gid_map", fmt::format("{0} {0} 1", gid)}}) {
    const UniqueFd fd(::open(fmt::format("/proc/{}/{}", process, name).c_str(), O_WRONLY | O_CLOEXEC));
    if (!fd || ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) return name;
  }
  return nullptr;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/run_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr size_t kLongestName = 255;

// A directory below `at` that only this user can write to, perhaps just made. -1: there is none.
UniqueFd own_directory(int at, const std::string& name, const std::string& path, bool make) {
  if (make && ::mkdirat(at, name.c_str(), 0700) != 0 && errno != EEXIST) throw_errno("cannot make {}", path);
  UniqueFd fd(::openat(at, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd && errno == ENOENT && !make) return fd;
  const bool other = !fd && (errno == ENOTDIR || errno == ELOOP);
  if (!fd && !other) throw_errno("cannot open {}", path);
  struct stat info {};
  if (fd && ::fstat(fd.get(), &info) != 0) throw_errno("cannot look at {}", path);
  if (other || info.st_uid != ::geteuid() || (info.st_mode & 0022) != 0) {
    throw_error(ErrorKind::kPermission, "{} is not a directory that only its owner, uid {}, can write to", path,
                ::geteuid());
  }
  return fd;
}

}  // namespace

bool is_node_name(const std::string& node) {
  return !node.empty() && node.size() <= kLongestName && node[0] != '.' &&
         std::all_of(node.begin(), node.end(), [](char c) { return c > ' ' && c < 0x7f && c != '/'; });
}

std::optional<RunDir> RunDir::at(const std::string& base, const std::string& node, bool make) {
  if (!is_node_name(node)) throw_error(ErrorKind::kUsage, "\"{}\" is not the name of a node", node);
  const UniqueFd top = own_directory(AT_FDCWD, base, base, make);
  if (!top) return std::nullopt;
  std::string path = base + "/" + node;
  UniqueFd fd = own_directory(top.get(), node, path, make);
  if (!fd) return std::nullopt;
  return RunDir(std::move(fd), std::move(path));
}

RunDir RunDir::make(const std::string& base, const std::string& node) { return *at(base, node, true); }

std::optional<RunDir> RunDir::find(const std::string& base, const std::string& node) { return at(base, node, false); }

UniqueFd RunDir::open(const std::string& name, int flags) const {
  UniqueFd fd(::openat(fd_.get(), name.c_str(), flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600));
  struct stat info {};
  if (fd && (::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode) || info.st_uid != ::geteuid())) {
    fd.reset();
    errno = EPERM;
  }
  return fd;
}

bool RunDir::remove(const std::string& name) const { return ::unlinkat(fd_.get(), name.c_str(), 0) == 0; }

bool RunDir::rename(const std::string& from, const std::string& to) const {
  return ::renameat(fd_.get(), from.c_str(), fd_.get(), to.c_str()) == 0;
}

std::string RunDir::job_file(uint32_t job, const char* what) { return fmt::format("job_{}.{}", job, what); }

std::string RunDir::job_directory(uint32_t job, uint32_t restart) const {
  return fmt::format("{}/job_{}.{}", path_, job, restart);
}

}  // namespace icp

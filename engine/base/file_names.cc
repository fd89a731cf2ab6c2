// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/file_names.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <memory>

namespace icp {

bool is_within(const std::string& path, const std::string& directory) {
  if (directory == "/") return path.starts_with('/');
  return path == directory || path.starts_with(directory + "/");
}

std::string moved_path(const std::string& path, const std::string& from, const std::string& to) {
  const std::string rest = from == "/" ? path : path.substr(from.size());
  if (rest.empty() || rest == "/") return to;
  return to == "/" ? rest : to + rest;
}

std::string directory_of(const std::string& path) { return path.substr(0, path.rfind('/') + 1); }
std::string last_name_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

UniqueFd open_root_of(pid_t pid) {
  struct stat mine {
  }, theirs{};
  const std::string process = "/proc/" + std::to_string(pid);
  if (::stat("/proc/self/ns/mnt", &mine) != 0 || ::stat((process + "/ns/mnt").c_str(), &theirs) != 0) return {};
  const bool same = mine.st_ino == theirs.st_ino;
  return UniqueFd(::open(same ? "/" : (process + "/root").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
}

UniqueFd open_below(int root, const std::string& path, int flags, unsigned mode) {
  const UniqueFd own(root >= 0 ? -1 : ::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  open_how how{};
  how.flags = static_cast<uint64_t>(flags | O_CLOEXEC);
  how.mode = mode;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  return UniqueFd(
      static_cast<int>(::syscall(SYS_openat2, root >= 0 ? root : own.get(), path.c_str(), &how, sizeof how)));
}

bool is_usable_path(const std::string& path) {
  return path.starts_with('/') && path.size() < PATH_MAX && path.find('\0') == std::string::npos;
}

std::optional<std::vector<std::string>> list_directory(int directory) {
  // A description of its own: reading moves the position, and several threads may list at once.
  UniqueFd own(::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(own ? ::fdopendir(own.get()) : nullptr, ::closedir);
  if (!stream) return std::nullopt;
  static_cast<void>(own.release());
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr && errno != 0) return std::nullopt;
    if (entry == nullptr) break;
    std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> names_in_directory(int root, const std::string& directory, const struct stat& status) {
  UniqueFd fd = open_below(root, directory, O_RDONLY | O_DIRECTORY);
  if (!fd) return {};
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(fd.get()), ::closedir);
  if (!entries) return {};
  (void)fd.release();
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(entries.get())) {
    if (entry->d_ino != status.st_ino) continue;
    struct stat now {};
    if (::fstatat(::dirfd(entries.get()), entry->d_name, &now, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (now.st_dev == status.st_dev && now.st_ino == status.st_ino) names.emplace_back(entry->d_name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace icp

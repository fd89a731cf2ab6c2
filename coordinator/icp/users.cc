// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/users.h"

#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/broker/rights.h"

namespace icp {

namespace {

struct User {
  std::string name, home, shell;
  uid_t uid = 0;
  gid_t gid = 0;
};

// `lookup` is getpwnam_r or getpwuid_r with its key bound.
template <typename Lookup>
std::optional<User> find_user(const Lookup& lookup) {
  std::vector<char> buffer(4096);
  passwd entry{};
  passwd* found = nullptr;
  int code = 0;
  while ((code = lookup(&entry, buffer.data(), buffer.size(), &found)) == ERANGE) buffer.resize(buffer.size() * 2);
  if (found == nullptr) return std::nullopt;
  return User{entry.pw_name, entry.pw_dir, entry.pw_shell, entry.pw_uid, entry.pw_gid};
}

std::optional<User> user_by_uid(uid_t uid) {
  return find_user([uid](auto... rest) { return getpwuid_r(uid, rest...); });
}

std::optional<User> user_by_name(const std::string& name) {
  return find_user([&name](auto... rest) { return getpwnam_r(name.c_str(), rest...); });
}

Identity identity_of(const User& user) {
  std::vector<gid_t> groups(64);
  int count = static_cast<int>(groups.size());
  while (getgrouplist(user.name.c_str(), user.gid, groups.data(), &count) < 0)
    groups.resize(static_cast<size_t>(count));  // count now says how many there are
  groups.resize(static_cast<size_t>(count));
  return {user.uid, user.gid, std::move(groups)};
}

}  // namespace

Identity caller_identity() {
  const int count = getgroups(0, nullptr);
  std::vector<gid_t> groups(static_cast<size_t>(count > 0 ? count : 0));
  if (count < 0 || getgroups(count, groups.data()) < 0) throw_errno("cannot read the caller's groups");
  return {getuid(), getgid(), std::move(groups)};
}

namespace {

std::optional<User> user_called(const std::string& name) {
  if (const auto user = user_by_name(name)) return user;
  uid_t uid = 0;
  const auto [end, code] = std::from_chars(name.data(), name.data() + name.size(), uid);
  return code == std::errc() && end == name.data() + name.size() ? user_by_uid(uid) : std::nullopt;
}

}  // namespace

Identity user_identity(const std::string& name) {
  const auto user = user_called(name);
  if (!user) throw_error(ErrorKind::kUsage, "there is no user {}", name);
  return identity_of(*user);
}

Identity identity_to_work_as(const std::string& name) {
  Identity user = user_identity(name);
  if (geteuid() == 0) return user;
  if (user.uid == geteuid()) return caller_identity();
  throw Error(ErrorKind::kPermission, fmt::format("only root can work for another user ({})", user_name(user.uid)),
              EPERM, "leave --user out, or run icp with sudo");
}

Identity reader_of(const std::string& image_path) {
  if (geteuid() != 0) return caller_identity();
  struct stat info {};
  if (stat(image_path.c_str(), &info) != 0) throw_errno("cannot open {}", image_path);
  if (info.st_uid == 0) return caller_identity();
  if (const auto user = user_by_uid(info.st_uid)) return identity_of(*user);
  return {info.st_uid, info.st_gid, {}};  // an owner without an entry: a number is all there is
}

void work_as(const Identity& identity) {
  BrokerOptions options;
  options.identity = identity;
  become_worker(std::move(options));
}

void take_rights_of(const Identity& identity) {
  if (geteuid() != 0 || identity.uid == 0) return;
  // Not for a moment may the user look into it.
  if (const char* what = take_identity(identity, 0, false, false); what != nullptr) throw_errno("cannot {}", what);
  check_identity(identity, 0);
}

namespace {
constexpr const char* kRootsMark = "trusted.slurm_icp";
}

void mark_roots_image(const std::string& image_path, const Identity& identity) {
  // Where the file system has no such attributes, --user is asked for at the restart.
  if (geteuid() == 0 && identity.uid == 0) lsetxattr(image_path.c_str(), kRootsMark, "root", 4, 0);
}

namespace {

// Whether nobody but root can put something else at this path (without links). Where a directory is everybody's, but
// sticky, entries of root's stay.
bool is_roots_place(const std::string& path) {
  for (std::filesystem::path above = std::filesystem::path(path).parent_path();; above = above.parent_path()) {
    struct stat info {};
    if (::lstat(above.c_str(), &info) != 0 || info.st_uid != 0) return false;
    const bool others = (info.st_mode & S_IWOTH) != 0 || ((info.st_mode & S_IWGRP) != 0 && info.st_gid != 0);
    if (others && (info.st_mode & S_ISVTX) == 0) return false;
    if (above == above.root_path()) return true;
  }
}

}  // namespace

std::string check_roots_image(const std::string& image_path, const Identity& identity) {
  if (geteuid() != 0 || identity.uid != 0) return image_path;
  const std::unique_ptr<char, decltype(&::free)> real(::realpath(image_path.c_str(), nullptr), ::free);
  if (!real) throw_errno("cannot open {}", image_path);
  std::string path(real.get());
  if (getxattr(path.c_str(), kRootsMark, nullptr, 0) < 0) {
    throw Error(
        ErrorKind::kPermission,
        fmt::format("{} belongs to root, but it is not known that root's processes were saved in it", image_path), 0,
        "name the user whose processes they are: --user NAME, or --user root");
  }
  if (!is_roots_place(path)) {
    throw Error(ErrorKind::kPermission,
                fmt::format("{} is root's, but others than root could put something else at {}", image_path, path), 0,
                "move it to where only root may write, or say --user root");
  }
  return path;
}

std::string user_name(uid_t uid) {
  const auto user = user_by_uid(uid);
  return user ? user->name : std::to_string(uid);
}

void become(const Identity& identity) {
  if ((geteuid() == 0 && setgroups(identity.groups.size(), identity.groups.data()) != 0) ||
      setresgid(identity.gid, identity.gid, identity.gid) != 0 ||
      setresuid(identity.uid, identity.uid, identity.uid) != 0)
    throw_errno("cannot become user {}", identity.uid);
  const auto user = user_by_uid(identity.uid);
  if (!user) return;
  setenv("HOME", user->home.c_str(), 1);
  setenv("SHELL", user->shell.empty() ? "/bin/sh" : user->shell.c_str(), 1);
  setenv("USER", user->name.c_str(), 1);
  setenv("LOGNAME", user->name.c_str(), 1);
}

}  // namespace icp

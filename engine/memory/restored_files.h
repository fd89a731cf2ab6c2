// SPDX-License-Identifier: GPL-2.0-or-later
// Files that an image names, opened for a restore.
#pragma once

#include <sys/stat.h>

#include <map>
#include <string>
#include <vector>

#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image.pb.h"

namespace icp {

// Opens files below the capsule's root with the user's rights, and none but the right ones. One thread.
class RestoredFiles {
 public:
  RestoredFiles(Identity identity, int root_fd) : identity_(std::move(identity)), root_fd_(root_fd) {}

  // A mapped file, read-only; kImage when it is missing or not the same (size, mtime). Valid until the next call.
  int mapped_file(const pb::FileIdentity& file);
  // As open_saved() of file_systems.h. -1 and errno on failure.
  UniqueFd open(const std::string& path, int flags, unsigned mode = 0) const;
  const Identity& identity() const { return identity_; }
  int unlink(const std::string& path) const;
  // Names in a directory that lead to the inode of `status`; see file_names.h.
  std::vector<std::string> names(const std::string& directory, const struct stat& status) const;
  int make_directory(const std::string& path) const;
  int remove_directory(const std::string& path) const;
  // Gives an open file another name, or renames one, as the user. 0, or -1 and errno.
  int link(int fd, const std::string& path) const;
  int rename(const std::string& from, const std::string& to) const;

 private:
  Identity identity_;
  int root_fd_;
  std::map<std::string, UniqueFd> open_;
};

}  // namespace icp

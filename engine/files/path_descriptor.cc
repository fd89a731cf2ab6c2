// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/path_descriptor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#include <string>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/files/image_path.h"

namespace icp {
namespace {

std::string link_text(int fd) {
  char text[PATH_MAX];
  const ssize_t length = ::readlinkat(fd, "", text, sizeof text);
  return length < 0 ? "" : std::string(text, static_cast<size_t>(length));
}

bool is_removed_link(const struct stat& status) { return S_ISLNK(status.st_mode) && status.st_nlink == 0; }

// One that nothing leads to: made somewhere and removed at once.
UniqueFd make_removed_link(const RestoreContext& context, const pb::OpenFile& file) {
  const std::string& text = file.link().text();
  if (text.empty() || text.size() >= PATH_MAX || text.find('\0') != std::string::npos)
    throw_bad_file(file, "it is a symbolic link to nothing");
  const FsIdentity as_user(context.options.identity);
  std::string directory = "/tmp/.icp-link-XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr) throw_errno("cannot make a symbolic link again");
  const std::string path = directory + "/" + last_name_of(file.identity().path());
  UniqueFd fd;
  if (::symlink(text.c_str(), path.c_str()) == 0) fd.reset(::open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  const int error = errno;
  ::unlink(path.c_str());
  ::rmdir(directory.c_str());
  errno = error;
  if (!fd) throw_errno("cannot make the symbolic link {} again", file.identity().path());
  return fd;
}

class PathDescriptorKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kLink; }

  bool recognises(FileScan&, Description& description) const override {
    const mode_t mode = description.stat.st_mode;
    const std::string& target = description.target;
    if ((description.info.flags & O_PATH) == 0 || !target.starts_with('/') || S_ISDIR(mode)) return false;
    return !S_ISREG(mode) || (target.starts_with("/dev/shm/") && description.stat.st_nlink > 0);
  }

  void check_one(FileScan& scan, Description& description) const override {
    if (!is_removed_link(description.stat)) path_leads_back(scan, description);
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    capture_identity(description);
    pb::SymbolicLink& link = *description.message->mutable_link();
    if (S_ISLNK(description.stat.st_mode)) link.set_text(link_text(scan.take(description)));
    link.set_removed(is_removed_link(description.stat));
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const std::string& path = file.identity().path();
    if (file.link().removed()) return make_removed_link(context, file);
    if (!is_usable_path(path)) throw_bad_file(file, "it has no usable path");
    const FsIdentity as_user(context.options.identity);
    UniqueFd fd = open_below(context.options.root_fd, path, O_PATH | O_NOFOLLOW);
    if (!fd) throw_errno("cannot find {}, which was open at the checkpoint", path);
    struct stat now {};
    if (::fstat(fd.get(), &now) != 0) throw_errno("cannot look at {}", path);
    if (file_system_kind(fd.get()) == FileSystemKind::kOther || is_about_a_process(context.options.root_fd, fd.get()))
      throw_bad_file(file, refused_file_system(path, fd.get()));
    if ((now.st_mode & S_IFMT) != (file.identity().mode() & S_IFMT) ||
        (S_ISLNK(now.st_mode) && link_text(fd.get()) != file.link().text())) {
      throw_bad_file(file, "it is something else than at the checkpoint");
    }
    return fd;
  }
};

}  // namespace

const FileKind& path_descriptor_kind() {
  static const PathDescriptorKind kind;
  return kind;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>

#include "engine/files/image_path.h"

namespace icp {
namespace {

class DirectoryKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kDirectory; }

  bool recognises(FileScan&, Description& description) const override {
    return S_ISDIR(description.stat.st_mode) && description.target.starts_with('/');
  }

  void check_one(FileScan& scan, Description& description) const override {
    const std::string& path = description.target;
    if (scan.filesystem(description) == PROC_SUPER_MAGIC && path.size() > 6 && path[6] >= '0' && path[6] <= '9') {
      scan.refuse(description, fmt::format("a directory about a process: {}", path), "close it before a checkpoint");
      return;
    }
    path_leads_back(scan, description);
  }

  void capture_one(FileScan&, const ObjectResolver&, Description& description) const override {
    capture_identity(description);
    description.message->mutable_directory();
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const FoundPath found = find_image_path(context, file, S_IFDIR);
    UniqueFd fd = open_found(context, file, found);
    // The position is a cookie of the file system; 0 is the only value that never changes its meaning.
    if (file.position() != 0) seek_to_position(file, fd.get());
    return fd;
  }
};

}  // namespace

const FileKind& directory_kind() {
  static const DirectoryKind kind;
  return kind;
}

}  // namespace icp

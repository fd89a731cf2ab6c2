// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/char_device.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

#include "engine/files/image_path.h"

namespace icp {

// Numbers from the kernel's Documentation/admin-guide/devices.txt.
bool is_plain_device(dev_t rdev) {
  if (::major(rdev) != 1) return false;
  switch (::minor(rdev)) {
    case 3:  // null
    case 5:  // zero
    case 7:  // full
    case 8:  // random
    case 9:
      return true;  // urandom
    default:
      return false;
  }
}

namespace {

class CharDeviceKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kCharDevice; }

  bool recognises(FileScan&, Description& description) const override {
    return S_ISCHR(description.stat.st_mode) && is_plain_device(description.stat.st_rdev);
  }

  void check_one(FileScan& scan, Description& description) const override { path_leads_back(scan, description); }

  void capture_one(FileScan&, const ObjectResolver&, Description& description) const override {
    capture_identity(description);
    description.message->mutable_char_device()->set_rdev(description.stat.st_rdev);
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const FoundPath found = find_image_path(context, file, S_IFCHR);
    if (!is_plain_device(found.stat.st_rdev) || found.stat.st_rdev != file.char_device().rdev()) {
      throw_bad_file(file, "it is not the device it was at the checkpoint");
    }
    return open_found(context, file, found);
  }
};

}  // namespace

const FileKind& char_device_kind() {
  static const CharDeviceKind kind;
  return kind;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/signalfd.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/error.h"

namespace icp {
namespace {

class SignalfdKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kSignalfd; }

  bool recognises(FileScan&, Description& description) const override {
    return description.target == "anon_inode:[signalfd]";
  }

  void check_one(FileScan& scan, Description& description) const override {
    if (!description.info.number("sigmask", 16)) scan.refuse(description, "signalfd of unknown mask", "close it");
  }

  void capture_one(FileScan&, const ObjectResolver&, Description& description) const override {
    description.message->mutable_signalfd()->set_mask(description.info.number("sigmask", 16).value_or(0));
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const uint64_t mask = file.signalfd().mask();  // the kernel's 64-bit sigset_t, not glibc's
    UniqueFd fd(static_cast<int>(::syscall(SYS_signalfd4, -1, &mask, sizeof mask, O_CLOEXEC)));
    if (!fd) throw_errno("cannot make a signalfd");
    context.signalfds.insert(file.id());
    return fd;
  }
};

}  // namespace

const FileKind& signalfd_kind() {
  static const SignalfdKind kind;
  return kind;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/eventfd.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine/base/error.h"

namespace icp {
namespace {

void add(int fd, uint64_t value) {
  if (value != 0 && ::write(fd, &value, sizeof value) != sizeof value) throw_errno("cannot write to an eventfd");
}

uint64_t take(int fd) {
  uint64_t value = 0;
  if (::read(fd, &value, sizeof value) != sizeof value) throw_errno("cannot read from an eventfd");
  return value;
}

class EventfdKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kEventfd; }

  bool recognises(FileScan&, Description& description) const override {
    return description.target == "anon_inode:[eventfd]";
  }

  void check_one(FileScan& scan, Description& description) const override {
    if (!description.info.number("eventfd-count", 16)) {
      scan.refuse(description, "eventfd of unknown count", "close it");
    }
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    pb::EventFd& eventfd = *description.message->mutable_eventfd();
    const uint64_t count = description.info.number("eventfd-count", 16).value_or(0);
    eventfd.set_count(count);
    const auto semaphore = description.info.number("eventfd-semaphore");
    eventfd.set_semaphore(semaphore ? *semaphore != 0 : probe_eventfd_semaphore(scan.take(description), count));
  }

  UniqueFd create_one(RestoreContext&, const pb::OpenFile& file) const override {
    const pb::EventFd& eventfd = file.eventfd();
    if (eventfd.count() == UINT64_MAX) throw_bad_file(file, "an eventfd's count is out of range");
    UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (eventfd.semaphore() ? EFD_SEMAPHORE : 0)));
    if (!fd) throw_errno("cannot make an eventfd");
    add(fd.get(), eventfd.count());  // an initial value has 32 bits only
    return fd;
  }
};

}  // namespace

// With a count of at least 2 a read tells: it gives 1, or all.
bool probe_eventfd_semaphore(int fd, uint64_t count) {
  const uint64_t added = count < 2 ? 2 - count : 0;
  add(fd, added);
  const bool semaphore = take(fd) == 1;
  if (!semaphore) {
    add(fd, count);
  } else if (added == 2) {
    take(fd);
  } else if (added == 0) {
    add(fd, 1);
  }
  return semaphore;
}

const FileKind& eventfd_kind() {
  static const EventfdKind kind;
  return kind;
}

}  // namespace icp

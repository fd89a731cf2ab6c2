// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include <algorithm>
#include <set>

#include "engine/base/error.h"
#include "engine/files/file_kind.h"

namespace icp {
namespace {

void fill(pb::PosixLock& message, const LockLine& lock) {
  message.set_type(lock.type);
  message.set_start(lock.start);
  message.set_length(lock.length);
}

struct flock to_flock(const pb::PosixLock& lock, const pb::OpenFile& file) {
  constexpr uint64_t most = INT64_MAX;
  if ((lock.type() != F_RDLCK && lock.type() != F_WRLCK) || lock.start() > most ||
      lock.length() > most - lock.start()) {
    throw_bad_file(file, "a lock on it is out of range");
  }
  struct flock request {};
  request.l_type = static_cast<short>(lock.type());
  request.l_whence = SEEK_SET;
  request.l_start = static_cast<off_t>(lock.start());
  request.l_len = static_cast<off_t>(lock.length());
  return request;
}

[[noreturn]] void throw_taken(const pb::OpenFile& file, int error) {
  if (error == EAGAIN || error == EACCES) {
    throw Error(ErrorKind::kSystem,
                fmt::format("{} was locked by the job and is locked by another process now", image_file_name(file)),
                error, "end the other process, or wait for it");
  }
  throw Error(ErrorKind::kSystem, fmt::format("cannot lock {} again: {}", image_file_name(file), errno_text(error)),
              error);
}

}  // namespace

void check_locks(FileScan& scan, Description& description) {
  for (const FdUse& use : description.uses) {
    for (const LockLine& lock : use.locks) {
      if (lock.kind != LockLine::Kind::kOther) continue;
      scan.refuse(description, fmt::format("lease on {} that another program waits for", description.target),
                  "let the program give it up", true);
    }
  }
}

void capture_locks(Description& description, const std::vector<pb::Process*>& states) {
  std::set<std::pair<size_t, LockLine>> seen;  // a dup'ed descriptor shows them again
  for (const FdUse& use : description.uses) {
    for (const LockLine& lock : use.locks) {
      const bool of_process = lock.kind == LockLine::Kind::kPosix;
      if (of_process && use.process >= states.size()) continue;
      if (!seen.emplace(of_process ? use.process : 0, lock).second) continue;
      if (lock.kind == LockLine::Kind::kFlock) {
        description.message->mutable_flock()->set_type(lock.type);
      } else if (lock.kind == LockLine::Kind::kOfd) {
        fill(*description.message->add_ofd_locks(), lock);
      } else if (lock.kind == LockLine::Kind::kLease) {
        description.message->set_lease(lock.type);
      } else if (of_process) {
        pb::PosixLock& message = *states[use.process]->add_posix_locks();
        fill(message, lock);
        message.set_file(description.id);
      }
    }
  }
}

namespace {

int flock_operation(const pb::OpenFile& file) {
  const int type = file.flock().type();
  if (type != F_RDLCK && type != F_WRLCK) throw_bad_file(file, "a lock on it is of unknown type");
  return (type == F_WRLCK ? LOCK_EX : LOCK_SH) | LOCK_NB;
}

}  // namespace

void restore_locks(const pb::OpenFile& file, int fd, bool in_process) {
  if (!in_process && file.has_flock() && ::flock(fd, flock_operation(file)) != 0) throw_taken(file, errno);
  for (const pb::PosixLock& lock : file.ofd_locks()) {
    struct flock request = to_flock(lock, file);
    if (::fcntl(fd, F_OFD_SETLK, &request) != 0) throw_taken(file, errno);
  }
}

void restore_own_locks(RemoteProcess& remote, const pb::OpenFile& file, int fd) {
  const auto number = static_cast<uint64_t>(fd);
  if (file.has_flock()) {
    const auto operation = static_cast<uint64_t>(flock_operation(file));
    const int64_t result = remote.syscall(SYS_flock, {number, operation});
    if (result != 0) throw_taken(file, static_cast<int>(-result));
  }
  if (!file.has_lease()) return;
  if (file.lease() != F_RDLCK && file.lease() != F_WRLCK) throw_bad_file(file, "a lease on it is of unknown type");
  const int64_t result = remote.syscall(SYS_fcntl, {number, F_SETLEASE, static_cast<uint64_t>(file.lease())});
  if (result != 0) throw_taken(file, static_cast<int>(-result));
}

void restore_posix_locks(RemoteProcess& remote, const pb::Process& process,
                         const std::map<uint32_t, const pb::OpenFile*>& files) {
  for (const pb::PosixLock& lock : process.posix_locks()) {
    const auto file = files.find(lock.file());
    const auto descriptor = std::find_if(process.fds().begin(), process.fds().end(),
                                         [&](const pb::FileDescriptor& fd) { return fd.file() == lock.file(); });
    if (file == files.end() || descriptor == process.fds().end()) {
      throw_error(ErrorKind::kImage, "process {} has a lock on file {}, which it has not open", process.pid(),
                  lock.file());
    }
    remote.reset_scratch();
    const RemoteAddr request = remote.stage_value(to_flock(lock, *file->second));
    const int64_t result = remote.syscall(SYS_fcntl, {static_cast<uint64_t>(descriptor->fd()), F_SETLK, request.value});
    if (result != 0) throw_taken(*file->second, static_cast<int>(-result));
  }
}

}  // namespace icp

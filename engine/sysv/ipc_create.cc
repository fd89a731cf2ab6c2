// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/ipc_create.h"

#include <fcntl.h>
#include <sys/ipc.h>
#include <unistd.h>

#include "engine/base/error.h"
#include "engine/base/unique_fd.h"
#include "engine/sysv/ipc_identity.h"

namespace icp {
namespace {

// Asks for the id of the next object of that kind in the calling thread's namespace. Needs CAP_SYS_ADMIN or
// CAP_CHECKPOINT_RESTORE, so it comes before the change of identity. Failing is no error: the object then gets
// another id.
void request_id(IpcKind kind, int id) {
  const std::string path = fmt::format("/proc/sys/kernel/{}_next_id", to_string(kind));
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  const std::string text = std::to_string(id);
  if (fd) static_cast<void>(!::write(fd.get(), text.data(), text.size()));
}

const char* long_name(IpcKind kind) {
  switch (kind) {
    case IpcKind::kShm:
      return "segment";
    case IpcKind::kSem:
      return "semaphore set";
    case IpcKind::kMsg:
      return "message queue";
  }
  return "object";
}

}  // namespace

std::string in_image(IpcKind kind, const pb::IpcPerm& perm) {
  return fmt::format("System V {} {} (key 0x{:08x}) in the image", long_name(kind), perm.id(),
                     static_cast<uint32_t>(perm.key()));
}

void PermCheck::check(const pb::IpcPerm& perm) {
  if (perm.id() < 0) throw_error(ErrorKind::kImage, "{}: its id is negative", in_image(kind_, perm));
  if (!ids_.insert(perm.id()).second) {
    throw_error(ErrorKind::kImage, "{}: another one has the same id", in_image(kind_, perm));
  }
  if (perm.key() != IPC_PRIVATE && !keys_.insert(perm.key()).second) {
    throw_error(ErrorKind::kImage, "{}: another one has the same key", in_image(kind_, perm));
  }
  if ((perm.mode() & ~0777u) != 0) {
    throw_error(ErrorKind::kImage, "{}: its mode 0{:o} is not a permission", in_image(kind_, perm), perm.mode());
  }
}

int create_with_id(IpcKind kind, const pb::IpcPerm& perm, uid_t uid, gid_t gid, const std::function<int()>& get) {
  request_id(kind, perm.id());
  int id = -1;
  int error = 0;
  {
    const IpcIdentity identity(uid, gid);
    id = get();
    error = errno;
  }
  if (id < 0) {
    throw Error(ErrorKind::kSystem, fmt::format("cannot make the {}: {}", in_image(kind, perm), errno_text(error)),
                error);
  }
  return id;
}

void capture_perm(const IpcObject& object, uint32_t sequence, pb::IpcPerm& perm) {
  perm.set_key(object.key);
  perm.set_id(object.id);
  perm.set_uid(object.uid);
  perm.set_gid(object.gid);
  perm.set_cuid(object.cuid);
  perm.set_cgid(object.cgid);
  perm.set_mode(object.mode);
  perm.set_seq(sequence);
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/sysv_ipc.h"

#include <sys/ipc.h>
#include <sys/shm.h>

#include <cerrno>

#include "engine/base/error.h"
#include "engine/sysv/message_queue.h"
#include "engine/sysv/semaphore.h"

namespace icp {
namespace {

int new_id(const RestoredSysv::Ids& ids, const char* kind, int old_id) {
  for (const auto& [from, to] : ids) {
    if (from == old_id) return to;
  }
  throw_error(ErrorKind::kImage, "the image refers to System V {} {}, which it does not hold", kind, old_id);
}

void append_changed(IpcKind kind, const RestoredSysv::Ids& ids, std::vector<std::string>& sentences) {
  for (const auto& [from, to] : ids) {
    if (from != to) sentences.push_back(fmt::format("System V {} {} has the id {} now", to_string(kind), from, to));
  }
}

void remove_all(IpcKind kind, const RestoredSysv::Ids& ids) {
  std::vector<IpcObject> objects;
  for (const auto& [from, to] : ids) {
    IpcObject object;
    object.kind = kind;
    object.id = to;
    objects.push_back(object);
  }
  std::vector<std::string> ignored;
  remove_ipc_objects(objects, &ignored);
}

}  // namespace

int RestoredSysv::shm_id(int old_id) const { return new_id(shm_ids, "segment", old_id); }
int RestoredSysv::sem_id(int old_id) const { return new_id(sem_ids, "semaphore set", old_id); }

std::vector<std::string> RestoredSysv::changed_ids() const {
  std::vector<std::string> sentences;
  append_changed(IpcKind::kShm, shm_ids, sentences);
  append_changed(IpcKind::kSem, sem_ids, sentences);
  append_changed(IpcKind::kMsg, msg_ids, sentences);
  return sentences;
}

void check_sysv(const std::vector<IpcObject>& objects, Findings& findings) {
  for (const IpcObject& object : objects) {
    if (object.kind != IpcKind::kMsg || object.messages == 0 || can_copy_messages()) continue;
    Finding finding;
    finding.pid = object.last;
    finding.where = fmt::format("System V message queue {}", object.id);
    finding.what =
        fmt::format("{} messages, which this kernel cannot show (no CONFIG_CHECKPOINT_RESTORE)", object.messages);
    finding.hint = "receive the messages before the checkpoint";
    finding.transient = true;
    findings.push_back(finding);
  }
}

void capture_sysv(const std::vector<IpcObject>& objects, pb::SysvIpc& state) {
  for (const IpcObject& object : objects) {
    switch (object.kind) {
      case IpcKind::kShm:
        if (!capture_segment(object, *state.add_segments())) state.mutable_segments()->RemoveLast();
        break;
      case IpcKind::kSem:
        if (!capture_semaphores(object, *state.add_semaphores())) state.mutable_semaphores()->RemoveLast();
        break;
      case IpcKind::kMsg:
        if (!capture_queue(object, *state.add_queues())) state.mutable_queues()->RemoveLast();
        break;
    }
  }
}

RestoredSysv restore_sysv(const pb::Capsule& capsule, uid_t uid, gid_t gid) {
  const pb::SysvIpc& state = capsule.sysv();
  const IpcLimits limits = IpcLimits::read();
  check_segments(state, limits);
  check_semaphores(capsule, limits);
  check_queues(state, limits);

  RestoredSysv restored;
  try {
    for (const auto& segment : state.segments()) {
      restored.shm_ids.emplace_back(segment.perm().id(), create_segment(segment, uid, gid));
    }
    for (const auto& set : state.semaphores()) {
      restored.sem_ids.emplace_back(set.perm().id(), create_semaphores(set, uid, gid));
    }
    for (const auto& queue : state.queues()) {
      restored.msg_ids.emplace_back(queue.perm().id(), create_queue(queue, uid, gid));
    }
  } catch (...) {
    remove_all(IpcKind::kShm, restored.shm_ids);
    remove_all(IpcKind::kSem, restored.sem_ids);
    remove_all(IpcKind::kMsg, restored.msg_ids);
    throw;
  }
  return restored;
}

void finish_sysv(const pb::Capsule& capsule, const RestoredSysv& restored) {
  for (const pb::ShmSegment& segment : capsule.sysv().segments()) {
    if (!segment.removed()) continue;
    const int id = restored.shm_id(segment.perm().id());
    if (::shmctl(id, IPC_RMID, nullptr) != 0 && errno != EINVAL && errno != EIDRM) {
      throw_errno("cannot mark System V segment {} for removal", id);
    }
  }
}

}  // namespace icp

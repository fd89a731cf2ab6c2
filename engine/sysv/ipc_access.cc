// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/ipc_access.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "engine/base/error.h"
#include "engine/broker/message.h"
#include "engine/sysv/ipc_namespace.h"
#include "engine/trace/remote_addr.h"

namespace icp {
namespace {

constexpr uint64_t kMostBytes = 1ull << 30;  // of a message: queues hold what the kernel's limits let them

enum Operation : uint8_t { kList, kSelect, kCapture, kRestore, kFinish, kOpenSegment, kCloseSegment };

SegmentMemory open_own_segment(int id) {
  std::shared_ptr<AttachedSegment> attached;
  int flags = O_RDWR;
  try {
    attached = std::make_shared<AttachedSegment>(id, true);
  } catch (const Error& error) {
    if (error.error_number() != EACCES) throw;
    flags = O_RDONLY;
    attached = std::make_shared<AttachedSegment>(id, false);
  }
  SegmentMemory memory;
  const auto start = reinterpret_cast<uint64_t>(attached->bytes().data());
  memory.bytes = attached->bytes().size();
  const std::string path = fmt::format("/proc/self/map_files/{:x}-{:x}", start, start + page_up(memory.bytes));
  memory.fd.reset(::open(path.c_str(), flags | O_CLOEXEC));
  if (memory.fd || errno != EPERM) {
    if (!memory.fd) throw_errno("cannot open the memory of System V segment {}", id);
    return memory;
  }
  // That takes CAP_CHECKPOINT_RESTORE: without it, through the memory of this process.
  memory.fd.reset(::open("/proc/self/mem", flags | O_CLOEXEC));
  if (!memory.fd) throw_errno("cannot open the memory of System V segment {}", id);
  memory.start = start;
  memory.attached = std::move(attached);
  return memory;
}

class Entering final : public IpcAccess {
 public:
  explicit Entering(UniqueFd space) : space_(std::move(space)) {
    own_ = ipc_namespace_inode(space_.get()) == ipc_namespace_inode(current_ipc_namespace().get());
  }
  std::vector<IpcObject> list() override {
    return inside([] { return list_ipc_objects(); });
  }
  std::vector<IpcObject> select(const SysvScope& scope) override {
    return inside([&] { return select_objects(scope); });
  }
  void capture(const std::vector<IpcObject>& objects, pb::SysvIpc& state) override {
    inside([&] { capture_sysv(objects, state); });
  }
  RestoredSysv restore(const pb::Capsule& capsule, uid_t uid, gid_t gid) override {
    return inside([&] { return restore_sysv(capsule, uid, gid); });
  }
  void finish(const pb::Capsule& capsule, const RestoredSysv& restored) override {
    inside([&] { finish_sysv(capsule, restored); });
  }
  SegmentMemory open_segment(int id) override {
    return inside([id] { return open_own_segment(id); });
  }

 private:
  template <typename Work>
  auto inside(Work work) -> decltype(work()) {
    std::optional<IpcNamespaceScope> scope;
    if (!own_) scope.emplace(space_.get());
    return work();
  }
  UniqueFd space_;
  bool own_ = false;
};

void put_scope(Message& message, const SysvScope& scope) {
  message.put(scope.whole_namespace).put(scope.uid).put(scope.since);
  message.put_all(std::vector<pid_t>(scope.pids.begin(), scope.pids.end()));
  message.put_all(std::vector<int>(scope.attached_ids.begin(), scope.attached_ids.end()));
}

SysvScope take_scope(MessageReader& reader) {
  SysvScope scope;
  scope.whole_namespace = reader.take<bool>();
  scope.uid = reader.take<uid_t>();
  scope.since = reader.take<int64_t>();
  for (const pid_t pid : reader.take_all<pid_t>()) scope.pids.insert(pid);
  for (const int id : reader.take_all<int>()) scope.attached_ids.insert(id);
  return scope;
}

struct IdPair {
  int from, to;
};

void put_restored(Message& message, const RestoredSysv& restored) {
  for (const RestoredSysv::Ids* ids : {&restored.shm_ids, &restored.sem_ids, &restored.msg_ids}) {
    std::vector<IdPair> pairs;
    for (const auto& [from, to] : *ids) pairs.push_back({from, to});
    message.put_all(pairs);
  }
}

RestoredSysv take_restored(MessageReader& reader) {
  RestoredSysv restored;
  for (RestoredSysv::Ids* ids : {&restored.shm_ids, &restored.sem_ids, &restored.msg_ids})
    for (const auto& [from, to] : reader.take_all<IdPair>()) ids->emplace_back(from, to);
  return restored;
}

// Segments, sets and queues of a capsule, and what their checks look at: the undo values of processes.
pb::Capsule ipc_part(const pb::Capsule& capsule) {
  pb::Capsule part;
  *part.mutable_sysv() = capsule.sysv();
  for (const pb::Process& process : capsule.processes()) {
    pb::Process& copy = *part.add_processes();
    copy.set_pid(process.pid());
    *copy.mutable_sem_undo() = process.sem_undo();
  }
  return part;
}

template <typename Proto>
Proto take_proto(MessageReader& reader) {
  Proto proto;
  const std::string_view bytes = reader.take_text();
  if (!proto.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    throw_error(ErrorKind::kUsage, "a message about System V objects is broken");
  return proto;
}

class Through final : public IpcAccess {
 public:
  explicit Through(UniqueFd socket) : socket_(std::move(socket)) {}
  std::vector<IpcObject> list() override { return objects_in(ask(Message().put(kList))); }
  std::vector<IpcObject> select(const SysvScope& scope) override {
    Message message;
    message.put(kSelect);
    put_scope(message, scope);
    return objects_in(ask(message));
  }
  void capture(const std::vector<IpcObject>& objects, pb::SysvIpc& state) override {
    const Message reply = ask(Message().put(kCapture).put_all(objects));
    MessageReader reader(reply);
    state = take_proto<pb::SysvIpc>(reader);
  }
  RestoredSysv restore(const pb::Capsule& capsule, uid_t uid, gid_t gid) override {
    const Message reply =
        ask(Message().put(kRestore).put(uid).put(gid).put_text(ipc_part(capsule).SerializeAsString()));
    MessageReader reader(reply);
    return take_restored(reader);
  }
  void finish(const pb::Capsule& capsule, const RestoredSysv& restored) override {
    Message message;
    message.put(kFinish).put_text(ipc_part(capsule).SerializeAsString());
    put_restored(message, restored);
    ask(message);
  }
  SegmentMemory open_segment(int id) override {
    Message reply = ask(Message().put(kOpenSegment).put(id));
    if (reply.fds.size() != 1) throw_error(ErrorKind::kSystem, "cannot open System V segment {}", id);
    MessageReader reader(reply);
    SegmentMemory memory;
    memory.start = reader.take<uint64_t>();
    memory.bytes = reader.take<uint64_t>();
    memory.fd = std::move(reply.fds.front());
    if (memory.start != 0) memory.attached = std::make_shared<Detach>(*this, id);
    return memory;
  }

 private:
  struct Detach {
    Detach(Through& helper_of, int segment) : helper(helper_of), id(segment) {}
    Detach(const Detach&) = delete;
    Detach& operator=(const Detach&) = delete;
    ~Detach() {
      try {
        helper.ask(Message().put(kCloseSegment).put(id));
      } catch (const Error&) {
        // The helper has ended, and its memory with it.
      }
    }
    Through& helper;
    int id;
  };
  Message ask(const Message& message) {
    send_message(socket_.get(), message);
    return receive_reply(socket_.get(), kMostBytes);
  }
  static std::vector<IpcObject> objects_in(const Message& reply) { return MessageReader(reply).take_all<IpcObject>(); }
  UniqueFd socket_;
};

// Segments that are attached for the other end, by id.
using Attached = std::map<int, SegmentMemory>;

Message answer(const Message& question, Attached& attached) {
  MessageReader reader(question);
  Message reply;
  switch (reader.take<Operation>()) {
    case kList:
      reply.put_all(list_ipc_objects());
      break;
    case kSelect:
      reply.put_all(select_objects(take_scope(reader)));
      break;
    case kCapture: {
      pb::SysvIpc state;
      capture_sysv(reader.take_all<IpcObject>(), state);
      reply.put_text(state.SerializeAsString());
      break;
    }
    case kRestore: {
      const uid_t uid = reader.take<uid_t>();
      const gid_t gid = reader.take<gid_t>();
      put_restored(reply, restore_sysv(take_proto<pb::Capsule>(reader), uid, gid));
      break;
    }
    case kFinish: {
      const auto capsule = take_proto<pb::Capsule>(reader);
      finish_sysv(capsule, take_restored(reader));
      break;
    }
    case kOpenSegment: {
      const int id = reader.take<int>();
      SegmentMemory memory = open_own_segment(id);
      reply.put(memory.start).put(memory.bytes);
      reply.fds.push_back(std::move(memory.fd));
      if (memory.start != 0) attached[id] = std::move(memory);
      break;
    }
    case kCloseSegment:
      attached.erase(reader.take<int>());
      break;
    default:
      throw_error(ErrorKind::kUsage, "an unknown question about System V objects");
  }
  return reply;
}

}  // namespace

std::unique_ptr<IpcAccess> IpcAccess::enter(UniqueFd namespace_fd) {
  return std::make_unique<Entering>(std::move(namespace_fd));
}

std::unique_ptr<IpcAccess> IpcAccess::through(UniqueFd socket) { return std::make_unique<Through>(std::move(socket)); }

void serve_ipc(int socket) noexcept {
  Attached attached;
  try {
    for (;;) {
      const Message question = receive_message(socket, kMostBytes);
      try {
        send_reply(socket, answer(question, attached));
      } catch (const Error& error) {
        send_error(socket, error);
      }
    }
  } catch (const std::exception&) {
    // The worker is gone, or does not listen.
  }
}

}  // namespace icp

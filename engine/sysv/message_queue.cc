// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/message_queue.h"

#include <sys/ipc.h>
#include <sys/msg.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <vector>

#include "engine/base/error.h"
#include "engine/sysv/ipc_create.h"

namespace icp {
namespace {

bool gone(int error) { return error == EINVAL || error == EIDRM; }

// struct msgbuf: a long (the type) and the text behind it.
class MessageBuffer {
 public:
  explicit MessageBuffer(size_t text_bytes) : storage_(sizeof(long) + text_bytes) {}
  void* data() { return storage_.data(); }
  char* text() { return storage_.data() + sizeof(long); }
  long type() const {
    long value = 0;
    std::memcpy(&value, storage_.data(), sizeof value);
    return value;
  }
  void set_type(long value) { std::memcpy(storage_.data(), &value, sizeof value); }

 private:
  std::vector<char> storage_;
};

// MSG_COPY: "type" is the place in the queue, from 0 (msgrcv(2)).
bool copy_messages(const IpcObject& object, uint64_t bytes, pb::MessageQueue& queue) {
  MessageBuffer buffer(bytes);
  for (long place = 0;; ++place) {
    const ssize_t got = ::msgrcv(object.id, buffer.data(), bytes, place, IPC_NOWAIT | MSG_COPY);
    if (got < 0 && errno == ENOMSG) return true;
    if (got < 0 && gone(errno)) return false;
    if (got < 0) throw_errno("cannot copy message {} of {}", place, describe(object));
    pb::IpcMessage& message = *queue.add_messages();
    message.set_type(buffer.type());
    message.set_text(buffer.text(), static_cast<size_t>(got));
  }
}

void send_messages(int id, const pb::MessageQueue& queue) {
  for (const pb::IpcMessage& message : queue.messages()) {
    MessageBuffer buffer(message.text().size());
    buffer.set_type(message.type());
    std::memcpy(buffer.text(), message.text().data(), message.text().size());
    if (::msgsnd(id, buffer.data(), message.text().size(), IPC_NOWAIT) != 0) {
      throw_errno("cannot put a message back into the {}", in_image(IpcKind::kMsg, queue.perm()));
    }
  }
}

// After the messages: a queue may hold more than its (lowered) limit.
void set_max_bytes(int id, const pb::MessageQueue& queue) {
  msqid_ds info{};
  if (::msgctl(id, IPC_STAT, &info) != 0) throw_errno("cannot look at message queue {}", id);
  if (info.msg_qbytes == queue.max_bytes()) return;
  info.msg_qbytes = queue.max_bytes();
  if (::msgctl(id, IPC_SET, &info) != 0) {
    throw_errno("cannot set the size of the {}", in_image(IpcKind::kMsg, queue.perm()));
  }
}

void check_queue(const pb::MessageQueue& queue, const IpcLimits& limits) {
  const std::string name = in_image(IpcKind::kMsg, queue.perm());
  uint64_t total = 0;
  for (const pb::IpcMessage& message : queue.messages()) {
    if (message.type() <= 0) throw_error(ErrorKind::kImage, "{}: a message has type {}", name, message.type());
    if (message.text().size() > limits.msg_max_bytes) {
      throw_error(ErrorKind::kImage, "{}: a message of {} bytes is larger than this host allows (kernel.msgmax {})",
                  name, message.text().size(), limits.msg_max_bytes);
    }
    total += message.text().size();
  }
  // Both the bytes and the number of messages stay below msg_qbytes (ipc/msg.c, msg_fits_inqueue).
  const uint64_t count = static_cast<uint64_t>(queue.messages_size());
  if (queue.max_bytes() > limits.msg_queue_bytes || total > limits.msg_queue_bytes || count > limits.msg_queue_bytes) {
    throw_error(ErrorKind::kImage,
                "{}: {} messages of {} bytes and a size of {} are more than this host allows (kernel.msgmnb {})", name,
                count, total, queue.max_bytes(), limits.msg_queue_bytes);
  }
}

}  // namespace

bool can_copy_messages() {
  // The kernel looks at the flag before the id (ipc/msg.c, do_msgrcv).
  MessageBuffer buffer(1);
  return ::msgrcv(INT_MAX, buffer.data(), 1, 0, IPC_NOWAIT | MSG_COPY) >= 0 || errno != ENOSYS;
}

bool capture_queue(const IpcObject& object, pb::MessageQueue& queue) {
  msqid_ds info{};
  if (::msgctl(object.id, IPC_STAT, &info) != 0) {
    if (gone(errno)) return false;
    throw_errno("cannot look at {}", describe(object));
  }
  capture_perm(object, info.msg_perm.__seq, *queue.mutable_perm());
  queue.set_max_bytes(info.msg_qbytes);
  if (info.msg_qnum == 0) return true;
  if (!can_copy_messages()) {
    throw Error(ErrorKind::kRefused,
                fmt::format("System V message queue {}: it holds {} messages, which this kernel cannot show "
                            "(no CONFIG_CHECKPOINT_RESTORE)",
                            object.id, info.msg_qnum),
                ENOSYS, "receive the messages before the checkpoint");
  }
  return copy_messages(object, info.__msg_cbytes, queue);
}

void check_queues(const pb::SysvIpc& state, const IpcLimits& limits) {
  PermCheck perms(IpcKind::kMsg);
  if (static_cast<uint64_t>(state.queues_size()) > limits.msg_queues) {
    throw_error(ErrorKind::kImage, "the image has {} System V message queues; this host allows {} (kernel.msgmni)",
                state.queues_size(), limits.msg_queues);
  }
  for (const pb::MessageQueue& queue : state.queues()) {
    perms.check(queue.perm());
    check_queue(queue, limits);
  }
}

int create_queue(const pb::MessageQueue& queue, uid_t uid, gid_t gid) {
  const int id = create_with_id(IpcKind::kMsg, queue.perm(), uid, gid, [&] {
    return ::msgget(queue.perm().key(), IPC_CREAT | IPC_EXCL | static_cast<int>(queue.perm().mode()));
  });
  try {
    send_messages(id, queue);
    set_max_bytes(id, queue);
  } catch (...) {
    ::msgctl(id, IPC_RMID, nullptr);
    throw;
  }
  return id;
}

}  // namespace icp

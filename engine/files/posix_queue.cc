// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/posix_queue.h"

#include <fcntl.h>
#include <mqueue.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/files/made_inside.h"

namespace icp {
namespace {

constexpr long kMqueueMagic = 0x19800202;                     // linux/magic.h has none
constexpr long kMostMessages = 65536, kMostBytes = 16 << 20;  // HARD_MSGMAX, HARD_MSGSIZEMAX of linux/ipc_namespace.h

// Not glibc's functions, which know numbers of a process by type alone.
long attributes(int fd, mq_attr& now) { return ::syscall(SYS_mq_getsetattr, fd, nullptr, &now); }

// Opened once more, for both directions: the process may have it for one.
UniqueFd open_whole(int fd) {
  return UniqueFd(::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
}

// "QSIZE:0 NOTIFY:0 SIGNO:0 NOTIFY_PID:0" (mq_overview(7)).
bool notifies(int fd) {
  std::array<char, 256> text{};
  if (::pread(fd, text.data(), text.size() - 1, 0) <= 0) return false;
  const char* const at = std::strstr(text.data(), "NOTIFY_PID:");
  return at != nullptr && std::atoi(at + std::strlen("NOTIFY_PID:")) != 0;
}

struct Taken {
  uint32_t priority;
  uint32_t bytes;
};

// Nobody may look at messages without taking them. They are put back at once, in the order in which they were, which
// keeps them in order, by a process of its own: it comes to its end should the agent be killed.
class BorrowedMessages {
 public:
  BorrowedMessages(int fd, const mq_attr& state) : state_(state) {
    const size_t slot = sizeof(Taken) + static_cast<size_t>(state.mq_msgsize);
    bytes_ = slot * static_cast<size_t>(state.mq_curmsgs) + sizeof(uint64_t);
    at_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at_ == MAP_FAILED) throw_errno("cannot look into a POSIX message queue");
    const pid_t child = ::fork();
    if (child == 0) take_and_put_back(fd, slot);
    if (child > 0) ::waitpid(child, nullptr, 0);
  }
  ~BorrowedMessages() { ::munmap(at_, bytes_); }
  BorrowedMessages(const BorrowedMessages&) = delete;
  BorrowedMessages& operator=(const BorrowedMessages&) = delete;

  bool complete() const { return *static_cast<const uint64_t*>(at_) == static_cast<uint64_t>(state_.mq_curmsgs); }
  void save(pb::PosixQueue& queue) const {
    const char* at = static_cast<const char*>(at_) + sizeof(uint64_t);
    for (long i = 0; i < state_.mq_curmsgs; ++i, at += sizeof(Taken) + static_cast<size_t>(state_.mq_msgsize)) {
      Taken taken{};
      std::memcpy(&taken, at, sizeof taken);
      pb::PosixMessage& message = *queue.add_messages();
      message.set_priority(taken.priority);
      message.set_text(at + sizeof taken, taken.bytes);
    }
  }

 private:
  [[noreturn]] void take_and_put_back(int fd, size_t slot) const {
    auto* const count = static_cast<uint64_t*>(at_);
    char* const first = static_cast<char*>(at_) + sizeof *count;
    for (char* at = first; *count < static_cast<uint64_t>(state_.mq_curmsgs); ++*count, at += slot) {
      Taken taken{};
      const long got =
          ::syscall(SYS_mq_timedreceive, fd, at + sizeof taken, state_.mq_msgsize, &taken.priority, nullptr);
      if (got < 0) break;
      taken.bytes = static_cast<uint32_t>(got);
      std::memcpy(at, &taken, sizeof taken);
    }
    const char* at = first;
    for (uint64_t i = 0; i < *count; ++i, at += slot) {
      Taken taken{};
      std::memcpy(&taken, at, sizeof taken);
      ::syscall(SYS_mq_timedsend, fd, at + sizeof taken, taken.bytes, taken.priority, nullptr);
    }
    ::_exit(0);
  }

  const mq_attr state_;
  size_t bytes_ = 0;
  void* at_ = nullptr;
};

class PosixQueueKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kPosixQueue; }

  bool recognises(FileScan& scan, Description& description) const override {
    return S_ISREG(description.stat.st_mode) && (description.info.flags & O_PATH) == 0 &&
           description.target.starts_with('/') && scan.filesystem(description) == kMqueueMagic;
  }

  void check(FileScan& scan, Descriptions descriptions) const override {
    for (Description* description : descriptions) {
      const int fd = scan.take(*description);
      if (fd < 0) continue;
      const UniqueFd whole = open_whole(fd);
      const std::string name = "POSIX message queue " + description->target;
      if (!whole)
        scan.refuse(*description, name + ", which its user may not open to read and write", "let the user do so");
      else if (notifies(whole.get()))
        scan.refuse(*description, name + " with a notification (mq_notify)",
                    "let a thread wait for messages instead, or take the notification back");
    }
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions descriptions) const override {
    std::set<std::pair<dev_t, ino_t>> seen;
    for (Description* description : descriptions) {
      pb::OpenFile& message = *description->message;
      pb::PosixQueue& queue = *message.mutable_posix_queue();
      std::string name = description->target.substr(description->target.rfind('/') + 1);  // also below /dev/mqueue
      queue.set_unlinked(description->stat.st_nlink == 0 && name.ends_with(kDeleted));
      if (queue.unlinked()) name.resize(name.size() - kDeleted.size());
      queue.set_name(name);
      queue.set_mode(description->stat.st_mode & 0777);
      message.mutable_identity()->set_path("/" + name);
      message.mutable_identity()->set_dev(description->stat.st_dev);
      message.mutable_identity()->set_ino(description->stat.st_ino);
      const UniqueFd whole = open_whole(scan.take(*description));
      mq_attr now{};
      if (!whole || attributes(whole.get(), now) != 0) throw_errno("cannot look at a POSIX message queue");
      queue.set_max_messages(static_cast<uint32_t>(now.mq_maxmsg));
      queue.set_message_bytes(static_cast<uint32_t>(now.mq_msgsize));
      if (!seen.emplace(description->stat.st_dev, description->stat.st_ino).second || now.mq_curmsgs == 0) continue;
      const BorrowedMessages messages(whole.get(), now);
      if (!messages.complete())
        throw_error(ErrorKind::kBusy, "others take messages out of POSIX message queue /{}; try again in a moment",
                    name);
      messages.save(queue);
    }
  }

  // Removed ones first: another queue may have the name since.
  void create(RestoreContext& context, ImageFiles files) const override {
    std::map<std::pair<uint64_t, uint64_t>, std::vector<const pb::OpenFile*>> queues;
    for (const pb::OpenFile* file : files) queues[{file->identity().dev(), file->identity().ino()}].push_back(file);
    for (const bool unlinked : {true, false})
      for (const auto& [inode, same] : queues)
        if (same.front()->posix_queue().unlinked() == unlinked) create_one(context, same);
  }

 private:
  static void create_one(RestoreContext& context, const std::vector<const pb::OpenFile*>& same) {
    const pb::OpenFile& first = *same.front();
    const pb::PosixQueue& queue = first.posix_queue();
    RemoteProcess& init = init_of(context, first);
    const bool valid = !queue.name().empty() && queue.name().size() < NAME_MAX &&
                       queue.name().find_first_of(std::string_view("/\0", 2)) == std::string::npos &&
                       queue.max_messages() > 0 && queue.max_messages() <= kMostMessages && queue.message_bytes() > 0 &&
                       queue.message_bytes() <= kMostBytes;
    if (!valid) throw_bad_file(first, "a POSIX message queue that cannot be");
    const UniqueFd whole = open_in(init, first, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, &queue);
    ::fchmod(whole.get(), queue.mode() & 0777);  // whatever the umask
    for (const pb::OpenFile* file : same)
      context.put(*file, open_in(init, first, static_cast<int>(file->flags()) & (O_ACCMODE | O_NONBLOCK), nullptr));
    for (const pb::PosixMessage& message : queue.messages()) {
      if (::syscall(SYS_mq_timedsend, whole.get(), message.text().data(), message.text().size(), message.priority(),
                    nullptr) != 0)
        throw_bad_file(first, "its messages do not fit into it");
    }
    if (!queue.unlinked()) return;
    init.reset_scratch();
    init.call("mq_unlink", SYS_mq_unlink, {init.stage_string(queue.name()).value});
  }

  // In the capsule's IPC namespace; with the user's rights, as icp-init has them.
  static UniqueFd open_in(RemoteProcess& init, const pb::OpenFile& file, int flags, const pb::PosixQueue* make) {
    init.reset_scratch();
    const RemoteAddr name = init.stage_string(file.posix_queue().name());
    mq_attr wanted{};
    uint64_t attributes_at = 0;
    if (make != nullptr) {
      wanted.mq_maxmsg = make->max_messages();
      wanted.mq_msgsize = make->message_bytes();
      attributes_at = init.stage_value(wanted).value;
    }
    const int64_t made = init.syscall(
        SYS_mq_open, {name.value, static_cast<uint64_t>(flags | O_CLOEXEC), S_IRUSR | S_IWUSR, attributes_at});
    if (made < 0)
      throw Error(ErrorKind::kSystem,
                  fmt::format("cannot make POSIX message queue {} again: {}", image_file_name(file),
                              errno_text(static_cast<int>(-made))),
                  static_cast<int>(-made), made == -EINVAL ? "raise fs.mqueue.msg_max and fs.mqueue.msgsize_max" : "");
    return init.take_away_fd(made);
  }
};

}  // namespace

const FileKind& posix_queue_kind() {
  static const PosixQueueKind kind;
  return kind;
}

}  // namespace icp

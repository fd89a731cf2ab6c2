// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <exception>
#include <set>

#include "engine/base/error.h"
#include "engine/files/directory.h"
#include "engine/files/file_kind.h"
#include "engine/files/file_lock.h"
#include "engine/files/file_owner.h"
#include "engine/files/file_table.h"
#include "engine/files/pty_restore.h"
#include "engine/files/tcp_socket.h"

namespace icp {
namespace {

constexpr int kMostFd = 1 << 30;  // beyond any fs.nr_open

// Flags that opening could not give: a pipe, socket or anonymous file is made with none.
void set_flags(const pb::OpenFile& file, int fd) {
  uint32_t mask = O_NONBLOCK;
  switch (file.kind_case()) {
    case pb::OpenFile::kPipe:
      mask |= O_DIRECT | O_APPEND;
      break;
    case pb::OpenFile::kInotify:
    case pb::OpenFile::kPtyMaster:
    case pb::OpenFile::kPtySlave:
    case pb::OpenFile::kEventfd:
    case pb::OpenFile::kTimerfd:
    case pb::OpenFile::kSignalfd:
    case pb::OpenFile::kUnixSocket:
    case pb::OpenFile::kTcp:
    case pb::OpenFile::kUdp:
    case pb::OpenFile::kNetlink:
      break;
    default:
      return;
  }
  if (::fcntl(fd, F_SETFL, file.flags() & mask) != 0) throw_errno("cannot set the flags of {}", image_file_name(file));
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);  // if it fails, many files will fail to open by name
}

}  // namespace

struct FileRestore::Impl {
  Impl(const pb::Capsule& image, FileRestoreOptions opts)
      : capsule(image), options(std::move(opts)), context(options) {}

  void index_files();
  void check_descriptors() const;

  const pb::Capsule& capsule;
  const FileRestoreOptions options;
  RestoreContext context;
  std::map<uint32_t, const pb::OpenFile*> files;
  bool terminals_made = false;
  std::set<uint32_t> owned;  // files whose owner is set
};

void FileRestore::Impl::index_files() {
  files.clear();
  for (const pb::OpenFile& file : capsule.files()) {
    if (file.id() == 0) throw_bad_file(file, "it has no number");
    file_kind(file);
    if (!files.emplace(file.id(), &file).second) throw_bad_file(file, "two open files have its number");
  }
}

void FileRestore::Impl::check_descriptors() const {
  for (const pb::Process& process : capsule.processes()) {
    if (process.files_of() != 0 && process.fds_size() > 0)
      throw_error(ErrorKind::kImage, "process {} has descriptors, and shares another's", process.pid());
    std::set<int> seen;
    for (const pb::FileDescriptor& descriptor : process.fds()) {
      const char* wrong = nullptr;
      if (descriptor.fd() < 0 || descriptor.fd() >= kMostFd)
        wrong = "is out of range";
      else if (!files.count(descriptor.file()))
        wrong = "refers to no file";
      else if (!seen.insert(descriptor.fd()).second)
        wrong = "is there twice";
      if (wrong) {
        throw_error(ErrorKind::kImage, "cannot restore process {}: descriptor {} {}", process.pid(), descriptor.fd(),
                    wrong);
      }
    }
  }
}

FileRestore::FileRestore(const pb::Capsule& capsule, FileRestoreOptions options)
    : impl_(std::make_unique<Impl>(capsule, std::move(options))) {}

FileRestore::~FileRestore() = default;

void FileRestore::create_terminals() {
  impl_->index_files();
  raise_descriptor_limit();
  std::vector<const pb::OpenFile*> masters;
  for (const pb::OpenFile& file : impl_->capsule.files())
    if (file.has_pty_master()) masters.push_back(&file);
  create_pty_masters(impl_->context, masters);
  impl_->terminals_made = true;
}

int FileRestore::pty_slave(uint32_t number) const {
  const auto pty = impl_->context.ptys.find(number);
  return pty == impl_->context.ptys.end() ? -1 : pty->second.slave.get();
}

void FileRestore::create() {
  if (!impl_->terminals_made) create_terminals();
  impl_->check_descriptors();
  for (const pb::MemoryObject& object : impl_->capsule.objects())
    if (object.kind() == pb::MemoryObject::MAPPED_FILE) impl_->context.mapped.emplace(object.dev(), object.ino());
  std::map<const FileKind*, std::vector<const pb::OpenFile*>> by_kind;
  for (const pb::OpenFile& file : impl_->capsule.files()) by_kind[&file_kind(file)].push_back(&file);
  for (const FileKind* kind : file_kinds()) {
    if (by_kind.count(kind)) kind->create(impl_->context, by_kind[kind]);
  }
  for (const FileKind* kind : file_kinds()) {
    if (by_kind.count(kind)) kind->connect(impl_->context, by_kind[kind]);
  }
  std::set<uint32_t> held;  // by processes
  for (const pb::Process& process : impl_->capsule.processes())
    for (const pb::FileDescriptor& descriptor : process.fds()) held.insert(descriptor.file());
  for (const auto& [id, file] : impl_->files) {
    const int fd = impl_->context.get(id);
    if (fd < 0 || file->has_outer()) continue;
    set_flags(*file, fd);
    if (!impl_->options.dry) restore_locks(*file, fd, held.count(id) != 0);
  }
}

int FileRestore::local_fd(uint32_t id) const {
  const int fd = impl_->context.get(id);
  if (fd < 0 && !impl_->context.is_made_inside(id)) throw_error(ErrorKind::kImage, "the image has no open file {}", id);
  return fd;
}

int FileRestore::removed_directory(uint64_t dev, uint64_t ino, const std::string& path) {
  uint32_t mode = 0700;
  for (const auto& [id, file] : impl_->files)
    if (file->has_directory() && file->identity().dev() == dev && file->identity().ino() == ino)
      mode = file->identity().mode();
  return icp::removed_directory(impl_->context, {dev, ino}, path, mode);
}

void FileRestore::finish_process(RemoteProcess& remote, const pb::Process& process) {
  FinishContext context{remote, process, impl_->files};
  impl_->context.senders[process.pid()] = {&remote, &process};
  for (const bool made_inside : {true, false}) {  // epoll sets may watch pidfds
    for (const pb::FileDescriptor& descriptor : process.fds()) {
      const auto file = impl_->files.find(descriptor.file());
      if (file == impl_->files.end())
        throw_error(ErrorKind::kImage, "the image has no open file {}", descriptor.file());
      if (impl_->context.is_made_inside(file->first) == made_inside)
        file_kind(*file->second).finish(context, descriptor, *file->second);
    }
  }
  for (const pb::FileDescriptor& descriptor : process.fds()) {
    const pb::OpenFile& file = *impl_->files.at(descriptor.file());
    if (file.has_outer() || !impl_->owned.insert(file.id()).second) continue;
    if (!impl_->options.dry) restore_own_locks(remote, file, descriptor.fd());
    restore_owner(remote, file, descriptor.fd(), impl_->context.get(file.id()));
  }
  if (!impl_->options.dry) restore_posix_locks(remote, process, impl_->files);
}

void FileRestore::deliver() {
  for (const auto& delivery : std::exchange(impl_->context.deliveries, {})) delivery();
  impl_->context.senders.clear();
}

void FileRestore::meet() {
  const NetworkRestore& network = impl_->options.network;
  if (impl_->options.dry) return;  // the other capsules are not there
  if (network.meet) impl_->context.other_ends = network.meet(impl_->context.open_ends);
  check_connections(impl_->context);
}

void FileRestore::apply_side_effects() {
  deliver();  // where there are no processes
  std::exception_ptr first;
  for (const auto& action : std::exchange(impl_->context.side_effects, {})) {
    try {
      action();
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  }
  if (first) std::rethrow_exception(first);
  impl_->context.undo.clear();
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/mapped_sources.h"

#include <fcntl.h>
#include <sys/syscall.h>

namespace icp {
namespace {

// Of a mapping of an object: a private one needs no more than to read it.
bool is_writable(const pb::Mapping& mapping) { return mapping.kind() == pb::Mapping::OBJECT && mapping.may_write(); }

std::string object_name(uint32_t object, bool writable) { return fmt::format("object {} {}", object, writable); }

}  // namespace

std::string MappedSources::name_of(const pb::Mapping& mapping) const {
  if (mapping.kind() == pb::Mapping::OBJECT || mapping.kind() == pb::Mapping::OBJECT_PRIVATE)
    return object_name(mapping.object(), is_writable(mapping));
  const pb::MemoryObject* const written = objects_.written_files().find(mapping);
  return written == nullptr ? "file " + mapping.file().path() : object_name(written->id(), false);
}

int MappedSources::send(RemoteProcess& remote, int local, std::string name) {
  remote.reset_scratch();
  remote_fd_ = remote.send_fd(agent_socket_, process_socket_, local);
  open_name_ = std::move(name);
  return remote_fd_;
}

int MappedSources::open(RemoteProcess& remote, const pb::Mapping& mapping) {
  std::string name = name_of(mapping);
  if (open_name_ == name) return remote_fd_;
  close(remote);
  if (mapping.kind() == pb::Mapping::OBJECT || mapping.kind() == pb::Mapping::OBJECT_PRIVATE)
    return send(remote, objects_.open(mapping.object(), is_writable(mapping) ? O_RDWR : O_RDONLY).get(), name);
  if (const pb::MemoryObject* const written = objects_.written_files().find(mapping); written != nullptr)
    return send(remote, objects_.open(written->id(), O_RDONLY).get(), name);
  return send(remote, files_.mapped_file(mapping.file()), name);
}

// An object when it has been removed since it began.
int MappedSources::open_program(RemoteProcess& remote, const pb::AddressSpace& memory) {
  close(remote);
  for (const pb::Mapping& mapping : memory.mappings()) {
    if (mapping.kind() != pb::Mapping::OBJECT_PRIVATE) continue;
    const pb::MemoryObject& object = objects_.find(mapping.object());
    if (object.dev() != memory.exe().dev() || object.ino() != memory.exe().ino()) continue;
    return send(remote, objects_.open(object.id(), O_RDONLY).get(), "program");
  }
  return send(remote, files_.mapped_file(memory.exe()), "program");
}

void MappedSources::close(RemoteProcess& remote) {
  if (remote_fd_ >= 0) remote.call("close", SYS_close, {static_cast<uint64_t>(remote_fd_)});
  remote_fd_ = -1;
  open_name_.clear();
}

}  // namespace icp

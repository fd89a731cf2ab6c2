// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/restore/map_paths.h"

#include <sys/un.h>

#include "engine/base/error.h"
#include "engine/base/printable.h"

namespace icp {
namespace {

class Mapper {
 public:
  explicit Mapper(const PathMap& map) : map_(map) {}

  std::string operator()(const std::string& path) const { return mapped_path(map_, path); }

  void identity(pb::FileIdentity& file) const { file.set_path((*this)(file.path())); }

  // Names in the file system begin with a slash here; abstract ones with a null byte.
  std::string socket_name(const std::string& name) const {
    const std::string mapped = (*this)(name);
    if (mapped != name && mapped.size() > sizeof(sockaddr_un::sun_path) - 1) {
      throw_error(ErrorKind::kUsage, "the Unix socket {} would be {}, and a socket's name has at most {} bytes",
                  printable(name), printable(mapped), sizeof(sockaddr_un::sun_path) - 1);
    }
    return mapped;
  }

  void unix_socket(pb::UnixSocket& socket) const {
    socket.set_name(socket_name(socket.name()));
    socket.set_peer_name(socket_name(socket.peer_name()));
    for (std::string& sender : *socket.mutable_queue_senders()) sender = socket_name(sender);
    if (socket.place().empty()) return;
    const std::string place = (*this)(socket.place());
    if (place != socket.place() && !place.ends_with("/" + socket.name())) {
      throw_error(ErrorKind::kUsage, "the Unix socket {} has the relative name {}, which would not lead to {}",
                  printable(socket.place()), printable(socket.name()), printable(place));
    }
    socket.set_place(place);
  }

  void open_file(pb::OpenFile& file) const {
    if (file.has_identity()) identity(*file.mutable_identity());
    if (file.has_pipe()) file.mutable_pipe()->set_fifo_path((*this)(file.pipe().fifo_path()));
    if (file.has_unix_socket()) unix_socket(*file.mutable_unix_socket());
    if (!file.has_inotify()) return;
    for (pb::InotifyWatch& watch : *file.mutable_inotify()->mutable_watches()) watch.set_path((*this)(watch.path()));
  }

  void process(pb::Process& process) const {
    process.set_cwd((*this)(process.cwd()));
    if (process.root() != "/") process.set_root((*this)(process.root()));
    for (pb::Thread& thread : *process.mutable_threads()) {
      if (!thread.has_directories()) continue;
      thread.mutable_directories()->set_cwd((*this)(thread.directories().cwd()));
      if (thread.directories().root() != "/")
        thread.mutable_directories()->set_root((*this)(thread.directories().root()));
    }
    if (!process.has_memory()) return;
    if (process.memory().has_exe()) identity(*process.mutable_memory()->mutable_exe());
    for (pb::Mapping& mapping : *process.mutable_memory()->mutable_mappings())
      if (mapping.has_file()) identity(*mapping.mutable_file());
  }

  void object(pb::MemoryObject& object) const {
    if (object.kind() != pb::MemoryObject::MEMFD) object.set_path((*this)(object.path()));
    for (std::string& link : *object.mutable_links()) link = (*this)(link);
  }

 private:
  const PathMap& map_;
};

}  // namespace

void map_paths(pb::Capsule& capsule, const PathMap& map) {
  if (map.empty()) return;
  const Mapper mapper(map);
  for (pb::Process& process : *capsule.mutable_processes()) mapper.process(process);
  for (pb::OpenFile& file : *capsule.mutable_files()) mapper.open_file(file);
  for (pb::MemoryObject& object : *capsule.mutable_objects()) mapper.object(object);
}

}  // namespace icp

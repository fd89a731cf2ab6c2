// SPDX-License-Identifier: GPL-2.0-or-later
// What the mappings of an image show, opened for the processes that map it.
#pragma once

#include <string>

#include "engine/image/image.pb.h"
#include "engine/memory/object_restore.h"
#include "engine/memory/restored_files.h"
#include "engine/trace/remote_process.h"

namespace icp {

// Files and objects as descriptors of processes under construction. Mappings of one file mostly follow each other: the
// last one stays open in its process until close(). One thread.
class MappedSources {
 public:
  // `agent_socket` and `process_socket` as for RemoteProcess::send_fd(). Files and objects outlive it.
  MappedSources(RestoredFiles& files, const ObjectRestore& objects, int agent_socket, int process_socket)
      : files_(files), objects_(objects), agent_socket_(agent_socket), process_socket_(process_socket) {}

  // Equal for mappings, none of them anonymous or of System V, that one descriptor serves.
  std::string name_of(const pb::Mapping& mapping) const;
  // The number in `remote`, valid until another call here. close() before another process's turn.
  int open(RemoteProcess& remote, const pb::Mapping& mapping);
  // The same for the program that runs there.
  int open_program(RemoteProcess& remote, const pb::AddressSpace& memory);
  void close(RemoteProcess& remote);

 private:
  int send(RemoteProcess& remote, int local, std::string name);

  RestoredFiles& files_;
  const ObjectRestore& objects_;
  int agent_socket_, process_socket_;
  std::string open_name_;  // what remote_fd_ is
  int remote_fd_ = -1;
};

}  // namespace icp

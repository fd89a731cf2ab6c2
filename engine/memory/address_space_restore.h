// SPDX-License-Identifier: GPL-2.0-or-later
// One process's address space, replaced by the one of an image.
#pragma once

#include <string>

#include "engine/image/image_dir.h"
#include "engine/image/page_store.h"
#include "engine/memory/memory_restore.h"
#include "engine/memory/object_restore.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/restored_files.h"

namespace icp {

// Used once, for one process whose AddressSpace has been checked.
class AddressSpaceRestore {
 public:
  AddressSpaceRestore(RemoteProcess& remote, const pb::AddressSpace& memory, RestoredFiles& files,
                      const ObjectRestore& objects, int agent_socket, int process_socket);

  // In this order:
  MemoryRestore::Trampoline make_trampoline();
  void unmap_all();  // but the trampoline
  void map_vdso();
  void map_all();
  // With `lazy`, what can come later is left to it.
  void fill_pages(const VersionReader& version, LazyFill* lazy);
  void finish();  // protection, advice, locks, names, layout

 private:
  void fill_ranges(PageStoreReader& reader, const std::vector<Range>& ranges);
  uint64_t call_mmap(const pb::Mapping& mapping, uint64_t flags, int fd);
  void map_object(const pb::Mapping& mapping);
  void attach_segment(const pb::Mapping& mapping, const pb::MemoryObject& object);
  int remote_fd(int local);
  void close_remote_fd();
  void write_pages(const pb::Mapping& mapping, uint64_t address, std::span<const std::byte> bytes);
  void advise(const pb::Mapping& mapping, uint32_t advice);

  RemoteProcess& remote_;
  const pb::AddressSpace& memory_;
  RestoredFiles& files_;
  const ObjectRestore& objects_;
  int agent_socket_, process_socket_;
  MemoryRestore::Trampoline trampoline_;
  std::string open_name_;  // what remote_fd_ is
  int remote_fd_ = -1;
  UniqueFd mem_;
};

}  // namespace icp

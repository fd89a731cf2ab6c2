// SPDX-License-Identifier: GPL-2.0-or-later
// One process's address space, replaced by the one of an image.
#pragma once

#include <optional>
#include <vector>

#include "engine/image/image_dir.h"
#include "engine/image/page_store.h"
#include "engine/memory/mapped_sources.h"
#include "engine/memory/memory_restore.h"
#include "engine/memory/object_restore.h"
#include "engine/memory/page_fill.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/shared_seed.h"

namespace icp {

// Used once, for one process whose AddressSpace has been checked.
class AddressSpaceRestore {
 public:
  // `inherited`: memory that it has from the process it was forked from, and keeps; may be null.
  AddressSpaceRestore(RemoteProcess& remote, const pb::AddressSpace& memory, const ObjectRestore& objects,
                      MappedSources& sources, const InheritedPages* inherited);

  // In this order:
  MemoryRestore::Trampoline make_trampoline();
  void unmap_all();  // but the trampoline and what it keeps
  void map_vdso();
  void map_all();
  // Puts down what is to be filled in; with `lazy` not what can come later. `shared` has the pages of
  // AddressSpace.shared_pages, or is null. After that, fill.run().
  void plan_pages(const VersionReader& version, const PageStoreReader* shared, bool lazy, PageFill& fill);
  void finish(LazyFill* lazy);  // what comes later, advice, locks, names, layout

 private:
  PageFill::FreshMemory register_fresh(const std::vector<Range>& mappings);
  uint64_t call_mmap(const pb::Mapping& mapping, uint64_t flags, int fd);
  void map(const pb::Mapping& mapping);
  void map_anonymous(const pb::Mapping& mapping);
  bool is_kept(const pb::Mapping& mapping) const;
  void take_over(const pb::Mapping& mapping);
  void map_object(const pb::Mapping& mapping);
  void attach_segment(const pb::Mapping& mapping, const pb::MemoryObject& object);
  void advise(const pb::Mapping& mapping, uint32_t advice);

  RemoteProcess& remote_;
  const pb::AddressSpace& memory_;
  const ObjectRestore& objects_;
  MappedSources& sources_;
  const InheritedPages* inherited_;
  MemoryRestore::Trampoline trampoline_;
  std::optional<PageStoreReader> reader_;
  std::vector<Range> later_;
};

}  // namespace icp

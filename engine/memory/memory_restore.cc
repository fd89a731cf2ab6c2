// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/memory_restore.h"

#include <sys/syscall.h>

#include <algorithm>
#include <map>

#include "engine/base/error.h"
#include "engine/memory/address_space_restore.h"
#include "engine/memory/host_facts.h"
#include "engine/memory/mapping_check.h"
#include "engine/memory/mm_layout.h"
#include "engine/memory/object_restore.h"
#include "engine/memory/restored_files.h"

namespace icp {

struct MemoryRestore::Impl {
  Impl(const VersionReader& from, const pb::Capsule& state, MemoryRestoreOptions given)
      : version(from),
        capsule(state),
        options(std::move(given)),
        files(options.identity, options.root_fd),
        objects(version, capsule, files, options.sysv, options.ipc),
        sources(files, objects, options.agent_socket, options.process_socket),
        seed_sources(files, objects, options.agent_socket, options.seed_socket) {
    if (options.keep_changed) objects.keep_changed();
    if (options.dry) objects.set_dry();
  }

  const VersionReader& version;
  const pb::Capsule& capsule;
  MemoryRestoreOptions options;
  mutable RestoredFiles files;
  ObjectRestore objects;
  MappedSources sources, seed_sources;
  std::map<uint32_t, AddressSpaceRestore> spaces;  // by pid, between map_process() and finish_process()
  PageFill fill;
  std::unique_ptr<SharedSeed> sharing;

  void check_process(const pb::Process& process) const;
  bool is_object(const pb::FileIdentity& file) const;
};

// Whether a file is saved in the image itself (a program deleted while it ran).
bool MemoryRestore::Impl::is_object(const pb::FileIdentity& file) const {
  return std::any_of(capsule.objects().begin(), capsule.objects().end(), [&](const pb::MemoryObject& object) {
    return object.dev() == file.dev() && object.ino() == file.ino() && object.kind() != pb::MemoryObject::SYSV;
  });
}

void MemoryRestore::Impl::check_process(const pb::Process& process) const {
  const pb::AddressSpace& memory = process.memory();
  check_mm_layout(memory);
  check_mappings(memory);
  for (const pb::Mapping& mapping : memory.mappings()) {
    if (mapping.object() != 0) objects.find(mapping.object());
    if (mapping.kind() == pb::Mapping::FILE_PRIVATE || mapping.kind() == pb::Mapping::FILE_READONLY_SHARED) {
      if (objects.written_files().find(mapping) == nullptr) files.mapped_file(mapping.file());
    }
  }
  if (!is_object(memory.exe())) files.mapped_file(memory.exe());
  const pb::HostFacts& then = version.manifest().host();
  if (memory.vdso_start() == 0) return;
  const pb::HostFacts now = this_host();
  if (then.vdso_hash() != now.vdso_hash() || then.vdso_bytes() != now.vdso_bytes() ||
      memory.vdso_size() != now.vdso_bytes()) {
    throw Error(ErrorKind::kImage,
                fmt::format("the image was taken with another kernel's vdso (kernel {} there, {} here)", then.kernel(),
                            now.kernel()),
                0, "restart on a node with the same kernel");
  }
}

MemoryRestore::MemoryRestore(const VersionReader& version, const pb::Capsule& capsule, MemoryRestoreOptions options)
    : impl_(std::make_unique<Impl>(version, capsule, std::move(options))) {}
MemoryRestore::~MemoryRestore() = default;

void MemoryRestore::check() const {
  impl_->objects.check();
  for (const pb::Process& process : impl_->capsule.processes()) {
    if (process.state() != pb::Process::ZOMBIE) impl_->check_process(process);
  }
}

void MemoryRestore::create_objects() { impl_->objects.create(); }

UniqueFd MemoryRestore::open_object(uint32_t object, uint32_t flags) {
  return impl_->objects.open_for_process(object, flags);
}

std::set<std::pair<uint64_t, uint64_t>> MemoryRestore::remade() const { return impl_->objects.remade(); }

void MemoryRestore::plan_sharing(const std::vector<TreeStep>& steps) {
  impl_->sharing = std::make_unique<SharedSeed>(impl_->version, impl_->capsule, steps, impl_->seed_sources);
}

void MemoryRestore::seed(uint32_t pid, RemoteProcess& remote) { impl_->sharing->fill(pid, remote); }

void MemoryRestore::end_seeding(RemoteProcess& init) { impl_->sharing->leave(init); }

MemoryRestore::Trampoline MemoryRestore::map_process(RemoteProcess& remote, const pb::Process& process) {
  check_mm_layout(process.memory());
  check_mappings(process.memory());
  const InheritedPages* const inherited = impl_->sharing ? impl_->sharing->of(process.pid()) : nullptr;
  AddressSpaceRestore& space =
      impl_->spaces.try_emplace(process.pid(), remote, process.memory(), impl_->objects, impl_->sources, inherited)
          .first->second;
  const Trampoline trampoline = space.make_trampoline();
  space.unmap_all();
  space.map_vdso();
  space.map_all();
  space.plan_pages(impl_->version, impl_->sharing ? impl_->sharing->store_of(process.memory()) : nullptr,
                   impl_->options.lazy != nullptr, impl_->fill);
  return trampoline;
}

void MemoryRestore::fill_pages() { impl_->fill.run(); }

void MemoryRestore::finish_process(const pb::Process& process) {
  impl_->spaces.at(process.pid()).finish(impl_->options.lazy);
  impl_->spaces.erase(process.pid());
}

void MemoryRestore::remove_trampoline(RemoteProcess& remote, Trampoline trampoline) {
  remote.call("munmap of the trampoline", SYS_munmap, {trampoline.start, trampoline.size});
}

void MemoryRestore::apply_side_effects() { impl_->objects.apply_side_effects(); }

}  // namespace icp

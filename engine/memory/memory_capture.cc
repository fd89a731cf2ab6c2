// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/memory_capture.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>
#include <xxhash.h>

#include <atomic>
#include <map>
#include <optional>
#include <set>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/parallel.h"
#include "engine/base/procfs.h"
#include "engine/memory/mm_layout.h"
#include "engine/memory/object_table.h"
#include "engine/memory/private_memory.h"
#include "engine/memory/staging.h"
#include "engine/process/numa_mappings.h"

namespace icp {
namespace {

constexpr uint64_t kSmallRest = 8 << 20;      // bytes left to copy that another round would not make cheaper
constexpr uint64_t kWorthWatching = 1 << 20;  // bytes of shared mappings; less is copied in the stop at once
constexpr size_t kKeepStaging = 64 << 20;     // bytes of touched staging memory kept between versions

// True when one of the process's descriptors writes memory past the page tables (open(2), O_DIRECT).
bool has_direct_io(pid_t pid) {
  for (const int fd : list_proc_numbers(pid, "fdinfo")) {
    try {
      const std::string text = read_proc(pid, fmt::format("fdinfo/{}", fd));
      const size_t flags = text.find("flags:");
      if (flags != std::string::npos && (std::stoul(text.substr(flags + 6), nullptr, 8) & O_DIRECT) != 0) return true;
    } catch (const Error&) {
      continue;  // closed meanwhile
    }
  }
  return false;
}

// The same from what capture_files() saw at this stop.
bool has_direct_io(const pb::Process& state, const pb::Capsule& capsule) {
  return std::any_of(state.fds().begin(), state.fds().end(), [&capsule](const pb::FileDescriptor& fd) {
    const int file = static_cast<int>(fd.file()) - 1;  // numbered from 1, in order
    return file >= 0 && file < capsule.files_size() && (capsule.files(file).flags() & O_DIRECT) != 0;
  });
}

std::vector<MemoryMapping> classify_all(pid_t pid, const std::vector<RawMapping>& raws) {
  MappingClassifier classifier(pid);
  std::vector<MemoryMapping> mappings;
  for (const RawMapping& raw : raws) {
    auto mapping = classifier.classify(raw);
    if (!mapping) continue;
    if (!mapping->problem.empty()) {
      throw Error(ErrorKind::kRefused,
                  fmt::format("process {}, address {:x}-{:x}: {}", pid, raw.maps.start, raw.maps.end, mapping->problem),
                  0, mapping->hint);
    }
    mappings.push_back(std::move(*mapping));
  }
  return mappings;
}

void add_mapping(pid_t pid, const MemoryMapping& mapping, uint32_t object, pb::AddressSpace& memory) {
  pb::Mapping& out = *memory.add_mappings();
  mapping.to_proto(out);
  out.set_object(object);
  if (const pb::NumaPolicy* policy = numa_policy_of(pid, mapping.maps.start)) *out.mutable_numa() = *policy;
  const uint64_t bytes = mapping.maps.end - mapping.maps.start;
  if (mapping.kind == pb::Mapping::VDSO) {
    memory.set_vdso_start(mapping.maps.start);
    memory.set_vdso_size(bytes);
  } else if (mapping.kind == pb::Mapping::VVAR) {
    if (memory.vvar_size() == 0) memory.set_vvar_start(mapping.maps.start);
    memory.set_vvar_size(mapping.maps.end - memory.vvar_start());
  }
  if ((mapping.flags & kVmGuard) != 0) {
    for (const auto& [start, end] : guard_ranges(pid, mapping.maps.start, mapping.maps.end)) {
      pb::Guard& guard = *out.add_guards();
      guard.set_start(start);
      guard.set_end(end);
    }
  }
}

// Processes that may share pages by fork(): those whose program has its stack at one address, which fork() hands on and
// exec chooses anew. (Without address space randomisation all look alike: that only costs time.)
class Relatives {
 public:
  void add(pid_t pid, const ProcStat& stat) {
    if (members_.insert(pid).second) ++count_[stat.start_stack];
  }
  // Parents outside of the capsule, once all its processes have been added: a worker alone of its pool is one case.
  void add_parent(const ProcStat& child) {
    if (child.ppid <= 0 || members_.count(child.ppid) != 0) return;
    try {
      add(child.ppid, ProcStat::read(child.ppid));
    } catch (const Error&) {
      return;  // it has ended
    }
  }
  bool has(const ProcStat& stat) const {
    const auto count = count_.find(stat.start_stack);
    return count != count_.end() && count->second > 1;
  }

 private:
  std::set<pid_t> members_;
  std::map<uint64_t, size_t> count_;
};

// The store of one process in one version. The times tell versions of one boot apart, which is as long as a cookie
// lives, and go along when a version is folded into another one or copied elsewhere.
TrackingCookie cookie_of(const pb::Manifest& version, const std::string& store) {
  const std::string name =
      fmt::format("{} {} {} {}", version.job().node(), version.taken_unix_ns(), version.taken_boot_ns(), store);
  const XXH128_hash_t hash = XXH3_128bits(name.data(), name.size());
  return {hash.low64, hash.high64};
}

}  // namespace

struct MemoryCapture::Impl {
  explicit Impl(MemoryOptions given) : options(std::move(given)), arena(options.staging_limit) {}

  MemoryOptions options;
  StagingArena arena;
  std::map<pid_t, std::unique_ptr<PrivateMemory>> spaces;
  std::vector<std::unique_ptr<PrivateMemory>> unused;  // begun in this version, then replaced (exec)
  ObjectTable objects;
  std::vector<OpenedFile> open_files;  // to be saved whole
  VersionWriter* version = nullptr;
  std::set<std::string> names;  // stores of the version under way
  std::set<pid_t> in_version;   // processes of the version, once collected
  bool precopied = false;
  bool new_mappings = false, new_shared = false;          // met in the last pre-copy round, tracked since
  bool has_relatives = false;                             // the process being collected
  std::optional<VersionReader> inherited;                 // where processes begin that have no tracker yet ...
  std::map<uint32_t, pb::AddressSpace> inherited_spaces;  // ... by their number in the capsule

  std::map<uint64_t, std::shared_ptr<SharedPages>> families;  // by where their stack begins (see Relatives)
  std::map<pid_t, pb::AddressSpace*> saved_spaces;            // what collect() has filled in
  std::function<VersionReader()> last;

  // What check() saw of a process without a tracker.
  struct FirstLook {
    uint64_t start_time;
    UniqueFd maps;  // opened before: empty once the address space is gone (exec, exit)
    MappingCache mappings;
  };
  std::map<pid_t, FirstLook> first_looks;

  MappingCache* first_look(const ProcessRef& process) {
    UniqueFd maps(::open(fmt::format("/proc/{}/maps", process.pid).c_str(), O_RDONLY | O_CLOEXEC));
    if (!maps) return nullptr;
    FirstLook& look = first_looks[process.pid];
    look = {process.start_time, std::move(maps), {}};
    return &look.mappings;
  }
  // smaps need not be read again for it.
  void take_first_look(const ProcessRef& process, PrivateMemory& space) {
    const auto look = first_looks.find(process.pid);
    if (look == first_looks.end()) return;
    char byte;
    if (look->second.start_time == process.start_time && ::pread(look->second.maps.get(), &byte, 1, 0) == 1)
      space.mapping_cache() = std::move(look->second.mappings);
    first_looks.erase(look);
  }
  PrivateMemory* find(const ProcessRef& process) {
    const auto it = spaces.find(process.pid);
    if (it == spaces.end() || it->second->process().start_time != process.start_time) return nullptr;
    return it->second->tracker().alive() ? it->second.get() : nullptr;
  }
  void track(StoppedProcess& process) {
    auto& space = spaces[process.ref.pid];
    if (space && space->begun()) unused.push_back(std::move(space));
    space = std::make_unique<PrivateMemory>(process.ref, make_tracker(options.tracker, *process.remote, options.keep));
    space->tracker().track_mappings(process.maps, true);
    take_first_look(process.ref, *space);
    const auto saved = inherited_spaces.find(static_cast<uint32_t>(process.ref.vpid));
    if (saved != inherited_spaces.end()) {
      space->inherit(*inherited, saved->second.index());
      join_family(*space, *inherited, saved->second);
      inherited_spaces.erase(saved);
    } else if (options.dedup) {
      space->begin_dedup(nullptr);
    }
  }
  // Gives a process its store of this version. A pid may be used twice in one version (exec, or an exit between the
  // pre-copy and the stop): the later one gets another name.
  void begin(PrivateMemory& space) {
    if (space.begun()) return;
    const std::string base = fmt::format("task_mm_{}", space.process().vpid);
    space.begin(*version, new_name(space.store().empty() ? base : space.store(), base));
    if (space.family() && !space.family()->begun()) space.family()->begin(*version);
  }
  // `wanted`, or one from `base` on when that is another store's.
  std::string new_name(std::string wanted, const std::string& base) {
    for (int i = 2; !names.insert(wanted).second; ++i) wanted = fmt::format("{}_{}", base, i);
    return wanted;
  }
  // A process that comes with what it had in `version`.
  void join_family(PrivateMemory& space, const VersionReader& from, const pb::AddressSpace& saved) {
    if (saved.shared_index().empty()) return;
    std::shared_ptr<SharedPages>& family = families[saved.start_stack()];
    if (!family) family = std::make_shared<SharedPages>(from, saved.shared_index());
    if (family->store() != saved.shared_index())
      throw_error(ErrorKind::kImage, "damaged image: relatives have pages in {} and {}", family->store(),
                  saved.shared_index());
    space.set_family(family, nullptr);
    space.set_shared_pages(shared_pages_of(saved));
  }
  struct Member {
    PrivateMemory* space;
    uint64_t stack;
  };
  void find_families(const std::vector<Member>& members, bool stopped);
  void join_new_member(std::shared_ptr<SharedPages>& family, PrivateMemory& space, bool stopped);
  void write_families(MemoryStats& stats);
  void end_inheriting() {
    if (inherited && !options.dedup)
      for (auto& [pid, space] : spaces) space->end_dedup();
    inherited.reset();
    inherited_spaces.clear();
  }
  void note_relatives(std::vector<PrivateMemory*>& running);
  // Before the mappings of the first pass are read.
  void watch_objects(const std::vector<PrivateMemory*>& running);
  void track_new_mappings(std::vector<PrivateMemory*>& running);
  uint64_t precopy_round(std::vector<PrivateMemory*>& running);
  // Returns whether it has descriptors that write past the page tables.
  bool collect_process(StoppedProcess& process, pb::Process& state, const pb::Capsule& capsule);
};

MemoryCapture::MemoryCapture(MemoryOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
MemoryCapture::~MemoryCapture() = default;
MemoryCapture::MemoryCapture(MemoryCapture&&) noexcept = default;
MemoryCapture& MemoryCapture::operator=(MemoryCapture&&) noexcept = default;

bool MemoryCapture::needs_tracker(const ProcessRef& process) const {
  return !process.zombie && impl_->find(process) == nullptr;
}

void MemoryCapture::track(StoppedProcess& process) {
  if (process.remote) impl_->track(process);
}

void MemoryCapture::check(const std::vector<ProcessRef>& processes, Findings& findings) {
  impl_->first_looks.clear();
  std::map<pid_t, MappingCache*> caches;
  for (const ProcessRef& process : processes) {
    if (process.zombie) continue;
    PrivateMemory* space = impl_->find(process);
    caches[process.pid] = space != nullptr ? &space->mapping_cache() : impl_->first_look(process);
  }
  check_memory(processes, findings, [&caches](const ProcessRef& process) { return caches.at(process.pid); });
}

void MemoryCapture::begin(VersionWriter& version, std::function<VersionReader()> last) {
  impl_->version = &version;
  impl_->last = std::move(last);
  impl_->names.clear();
  impl_->saved_spaces.clear();
  for (const auto& [stack, family] : impl_->families) impl_->names.insert(family->store());
  impl_->in_version.clear();
  impl_->precopied = false;
  impl_->arena.reset(kKeepStaging);
  impl_->objects.begin(version);
}

void MemoryCapture::Impl::watch_objects(const std::vector<PrivateMemory*>& running) {
  std::vector<pid_t> pids;
  uint64_t shared = 0;
  for (PrivateMemory* space : running) {
    pids.push_back(space->process().pid);
    for (const RawMapping& mapping : space->mapping_cache().mappings())
      if (mapping.maps.shared) shared += mapping.maps.end - mapping.maps.start;
  }
  std::sort(pids.begin(), pids.end());
  if (shared >= kWorthWatching) objects.watch(std::move(pids));
}

// In a stop.
void MemoryCapture::Impl::track_new_mappings(std::vector<PrivateMemory*>& running) {
  for (PrivateMemory* space : running) {
    if (!space->tracker().wants_mappings()) continue;
    try {
      new_mappings = true;
      new_shared = space->tracker().track_mappings(MapsEntry::read(space->process().pid), false) || new_shared;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;  // it has been killed
    }
  }
}

// One round over all running processes: arm everything, then copy. Returns the bytes found written.
uint64_t MemoryCapture::Impl::precopy_round(std::vector<PrivateMemory*>& running) {
  std::atomic<uint64_t> written = 0;
  new_mappings = new_shared = false;
  objects.start_pass();
  // Those that have ended meanwhile, or run another program, are out.
  const auto each = [&](size_t threads, const std::function<void(PrivateMemory&)>& work) {
    std::vector<uint8_t> gone(running.size());
    parallel_for(running.size(), threads, [&]() -> ItemWork {
      return [&](size_t i) {
        try {
          work(*running[i]);
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::kGone && running[i]->tracker().alive()) throw;
          gone[i] = 1;
        }
      };
    });
    size_t i = 0;
    std::erase_if(running, [&](PrivateMemory*) { return gone[i++] != 0; });
  };
  each(1, [this](PrivateMemory& space) { begin(space); });
  each(running.size(), [&](PrivateMemory& space) { written += space.precopy_collect(); });
  each(1, [this](PrivateMemory& space) {
    for (const MemoryMapping& mapping : space.running_mappings()) {
      if (!mapping.object) continue;
      try {
        objects.note_mapping(mapping, space.tracker(), space.process().pid);
      } catch (const Error&) {
        continue;  // unmapped at this moment; the stop will tell
      }
    }
  });
  for (const OpenedFile& file : open_files) objects.note_open_file(file.fd.get(), file.path);
  written += objects.precopy_collect();
  if (options.quiesce) options.quiesce([&] { track_new_mappings(running); });
  each(1, [](PrivateMemory& space) { space.precopy_copy(); });  // each with several threads
  objects.precopy_copy(options.staging_limit);
  return written;
}

// Those that have ended meanwhile are out.
void MemoryCapture::Impl::note_relatives(std::vector<PrivateMemory*>& running) {
  Relatives relatives;
  std::map<pid_t, ProcStat> stats;
  std::erase_if(running, [&](const PrivateMemory* space) {
    const pid_t pid = space->process().pid;
    try {
      relatives.add(pid, stats[pid] = ProcStat::read(pid));
      return false;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
      return true;
    }
  });
  for (const PrivateMemory* space : running) relatives.add_parent(stats[space->process().pid]);
  std::vector<Member> members;
  for (PrivateMemory* space : running) {
    const ProcStat& stat = stats[space->process().pid];
    space->set_has_relatives(relatives.has(stat));
    members.push_back({space, stat.start_stack});
  }
  find_families(members, false);
}

// A family are two processes of the capsule or more.
void MemoryCapture::Impl::find_families(const std::vector<Member>& members, bool stopped) {
  std::map<uint64_t, size_t> count;
  for (const Member& member : members) ++count[member.stack];
  for (const Member& member : members) {
    if (member.space->family() || member.space->begun()) continue;
    const auto family = families.find(member.stack);
    if (family == families.end() && count[member.stack] < 2) continue;
    join_new_member(families[member.stack], *member.space, stopped);
  }
  std::erase_if(families, [](const auto& entry) { return !entry.second; });
}

// One that has been alone in earlier versions gives the family what those hold of it. That takes reading, for which
// nobody is to wait.
void MemoryCapture::Impl::join_new_member(std::shared_ptr<SharedPages>& family, PrivateMemory& space, bool stopped) {
  const bool known = space.total_pages() > 0;
  if (known && (stopped || !last)) return;
  if (known && !family) {
    const VersionReader reader = last();
    const std::string store = space.store();
    family = std::make_shared<SharedPages>(reader, store, space.give_index_away());
    names.insert(store);
    space.set_family(family, nullptr);
    return;
  }
  if (!family) {
    const std::string base = fmt::format("family_mm_{}", space.process().vpid);
    family = std::make_shared<SharedPages>(new_name(base, base));
  }
  if (known) {
    const VersionReader reader = last();
    space.set_family(family, &reader);
  } else {
    space.set_family(family, nullptr);
  }
}

void MemoryCapture::precopy(const std::vector<ProcessRef>& processes, unsigned most_rounds) {
  std::vector<PrivateMemory*> running;
  for (const ProcessRef& process : processes) {
    PrivateMemory* space = process.zombie ? nullptr : impl_->find(process);
    if (space == nullptr || !space->tracker().atomic_rearm()) continue;
    try {
      if (!has_direct_io(process.pid)) running.push_back(space);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
  impl_->note_relatives(running);
  impl_->watch_objects(running);
  uint64_t before = ~0ull, written = 0;
  const unsigned rounds = std::min(impl_->options.precopy_rounds, most_rounds);
  for (unsigned round = 0; round < rounds && !running.empty(); ++round) {
    written = impl_->precopy_round(running);
    impl_->precopied = true;
    // Each round passes every thread through a stop: one is enough where the next would find next to nothing. New
    // mappings are copied by the round after the one that met them, and shared ones not in the stop at all, then.
    const bool small = written <= kSmallRest && !impl_->new_shared;
    if (small || (round > 0 && !impl_->new_mappings && written > before - before / 4)) break;
    before = impl_->new_mappings ? ~0ull : written;
  }
  impl_->first_looks.clear();
  impl_->open_files.clear();
  // What the last round found is about what the stop will find. (The first one of a first version finds everything.)
  written += impl_->objects.untracked_bytes();
  impl_->arena.prepare(std::min(written, impl_->options.staging_limit));
  impl_->objects.start_pass();
}

bool MemoryCapture::Impl::collect_process(StoppedProcess& process, pb::Process& state, const pb::Capsule& capsule) {
  PrivateMemory* space = find(process.ref);
  if (space == nullptr) {
    track(process);
    space = spaces.at(process.ref.pid).get();
  }
  begin(*space);
  space->set_has_relatives(has_relatives);
  in_version.insert(process.ref.pid);
  const pid_t pid = process.ref.pid;
  const bool direct = capsule.files().empty() ? has_direct_io(pid) : has_direct_io(state, capsule);
  MappingCache& cache = space->mapping_cache();
  // pkey_mprotect() changes nothing that maps would show.
  const bool has_keys = state.memory().protection_keys() != 0;
  const std::vector<MemoryMapping> mappings =
      classify_all(pid, has_keys ? cache.refresh(pid) : cache.update(pid, process.maps));
  const size_t before = arena.used();
  pb::AddressSpace& memory = *state.mutable_memory();
  // Before the pages: a call in the process lets the kernel write to it (rseq).
  capture_mm_layout(process, memory);
  end_calls(process);
  space->collect(mappings, arena, precopied && direct);

  memory.set_index(space->store());
  saved_spaces[pid] = &memory;
  for (const MemoryMapping& mapping : mappings) {
    const uint32_t object = mapping.object ? objects.note_mapping(mapping, space->tracker(), pid) : 0;
    add_mapping(pid, mapping, object, memory);
  }
  // Should it have been killed, its page table was empty and nothing above is true.
  if (!space->tracker().alive()) throw_error(ErrorKind::kGone, "process {} was killed during the checkpoint", pid);
  spdlog::debug("memory of process {}: {} mappings, {} bytes copied at the stop", pid, mappings.size(),
                arena.used() - before);
  return direct;
}

void MemoryCapture::collect(std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states,
                            pb::Capsule& capsule) {
  bool direct = false;
  Relatives relatives;
  for (const StoppedProcess& process : processes)
    if (process.remote) relatives.add(process.ref.pid, process.stat);
  for (const StoppedProcess& process : processes)
    if (process.remote) relatives.add_parent(process.stat);
  std::vector<Impl::Member> members;
  for (const StoppedProcess& process : processes) {
    if (!process.remote) continue;
    if (PrivateMemory* const space = impl_->find(process.ref)) members.push_back({space, process.stat.start_stack});
  }
  impl_->find_families(members, true);
  for (size_t i = 0; i < processes.size(); ++i) {
    if (!processes[i].remote) continue;
    impl_->has_relatives = relatives.has(processes[i].stat);
    direct = impl_->collect_process(processes[i], *states[i], capsule) || direct;
  }
  UniqueFd root;
  for (const StoppedProcess& process : processes)
    if (process.remote && !root) root = open_root_of(process.ref.pid);
  if (!root) root.reset(::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  impl_->objects.collect(impl_->arena, direct, root.get(), capsule);
  if (impl_->arena.overflowed()) {
    spdlog::warn("more than {} bytes had to be copied in the stop: the rest was written out while the processes waited",
                 impl_->options.staging_limit);
  }
}

uint32_t MemoryCapture::object_of_file(int local_fd, const std::string& target) {
  return impl_->objects.note_file(local_fd, target);
}

uint32_t MemoryCapture::object_of_open_file(int local_fd, const std::string& target) {
  return impl_->objects.note_open_file(local_fd, target);
}

void MemoryCapture::set_open_files(std::vector<OpenedFile> files) { impl_->open_files = std::move(files); }

void MemoryCapture::set_ipc(std::shared_ptr<IpcAccess> ipc) { impl_->objects.set_ipc(std::move(ipc)); }

void MemoryCapture::set_quiesce(MemoryOptions::Quiesce quiesce) { impl_->options.quiesce = std::move(quiesce); }

MemoryStats MemoryCapture::write() {
  for (auto& space : impl_->unused) space->close_unused();
  impl_->unused.clear();
  std::erase_if(impl_->spaces, [&](const auto& entry) {
    if (impl_->in_version.count(entry.first) != 0) return false;
    entry.second->close_unused();
    return true;
  });
  MemoryStats stats;
  stats.full = true;
  stats.read_whole = impl_->objects.read_whole();
  const auto add = [&](const auto& store) {
    stats.pages_written += store.written_pages();
    stats.pages_total += store.total_pages();
    stats.full = stats.full && store.full();
  };
  for (auto& [pid, space] : impl_->spaces) {
    if (stats.tracker.empty()) stats.tracker = space->tracker().name();
    space->write();
    add(*space);
  }
  impl_->write_families(stats);
  impl_->end_inheriting();
  impl_->objects.write();
  impl_->objects.for_each(add);
  impl_->arena.reset(kKeepStaging);
  impl_->version = nullptr;
  return stats;
}

void MemoryCapture::Impl::write_families(MemoryStats& stats) {
  std::map<const SharedPages*, std::vector<Range>> used;
  for (auto& [pid, space] : spaces) {
    SharedPages* const family = space->family().get();
    if (family == nullptr) continue;
    std::vector<Range>& ranges = used[family];
    ranges.insert(ranges.end(), space->shared_pages().begin(), space->shared_pages().end());
    if (space->shared_pages().empty()) continue;
    pb::AddressSpace& saved = *saved_spaces.at(pid);
    saved.set_shared_index(family->store());
    save_shared_pages(space->shared_pages(), saved);
    stats.shared = true;
  }
  for (auto& [stack, family] : families) {
    if (!family->begun()) continue;
    std::vector<Range> ranges;
    if (const auto members = used.find(family.get()); members != used.end()) ranges = std::move(members->second);
    normalise(ranges);
    family->write(ranges);
    stats.pages_written += family->written_pages();
    stats.pages_total += family->total_pages();
    stats.full = stats.full && family->full();
  }
  std::erase_if(families, [&used](const auto& entry) { return !used.contains(entry.second.get()); });
  saved_spaces.clear();
}

void MemoryCapture::abandon() {
  impl_->unused.clear();
  for (auto& [stack, family] : impl_->families) family->forget();
  for (auto& [pid, space] : impl_->spaces) space->forget();
  impl_->end_inheriting();
  impl_->objects.abandon();
  impl_->arena.reset(kKeepStaging);
  impl_->version = nullptr;
}

void MemoryCapture::inherit(const VersionReader& version) {
  impl_->inherited.emplace(version);
  const pb::Capsule capsule = version.read_state();
  for (const pb::Process& process : capsule.processes())
    if (!process.memory().index().empty()) impl_->inherited_spaces[process.pid()] = process.memory();
}

void MemoryCapture::reload(const VersionReader& version) {
  for (auto& [stack, family] : impl_->families) family->reload(version);
  for (auto& [pid, space] : impl_->spaces) space->reload(version);
  impl_->objects.reload(version);
}

void MemoryCapture::begin_dedup(const VersionReader& version) {
  impl_->options.dedup = true;
  for (auto& [pid, space] : impl_->spaces) space->begin_dedup(&version);
}

bool MemoryCapture::dedup() const { return impl_->options.dedup; }

void MemoryCapture::adopt(const VersionReader& version, const pb::Capsule& capsule,
                          std::vector<StoppedProcess>& processes) {
  std::map<uint32_t, const pb::Process*> by_pid;
  for (const pb::Process& process : capsule.processes()) by_pid[process.pid()] = &process;
  uint32_t highest = 0;
  for (const pb::MemoryObject& object : capsule.objects()) highest = std::max(highest, object.id());

  for (StoppedProcess& process : processes) {
    const auto state = by_pid.find(static_cast<uint32_t>(process.ref.vpid));
    if (!process.remote || state == by_pid.end()) continue;
    const pb::AddressSpace& saved = state->second->memory();
    impl_->track(process);
    PrivateMemory& space = *impl_->spaces.at(process.ref.pid);
    const pid_t pid = process.ref.pid;
    const std::vector<MemoryMapping> mappings = classify_all(pid, space.mapping_cache().refresh(pid));
    space.adopt(saved.index(), PageStoreReader(version, saved.index()).take_index(), mappings);
    impl_->join_family(space, version, saved);
    for (const MemoryMapping& mapping : mappings) {
      if (!mapping.object) continue;
      for (const pb::Mapping& old : saved.mappings()) {
        if (old.object() == 0 || old.start() > mapping.maps.start || old.end() <= mapping.maps.start) continue;
        impl_->objects.adopt(version, old.object(), mapping, space.tracker(), pid);
      }
    }
  }
  impl_->objects.finish_adopt(highest);
}

void MemoryCapture::saved_as(const pb::Manifest& version) {
  if (!impl_->options.keep) return;
  for (auto& [pid, space] : impl_->spaces) space->tracker().saved_as(cookie_of(version, space->store()));
}

bool MemoryCapture::resume(const VersionReader& version, const pb::Capsule& capsule,
                           const std::vector<ProcessRef>& processes) {
  std::map<uint32_t, const pb::Process*> by_pid;
  for (const pb::Process& process : capsule.processes()) by_pid[process.pid()] = &process;
  for (const ProcessRef& process : processes) {
    const auto state = by_pid.find(static_cast<uint32_t>(process.vpid));
    if (process.zombie || state == by_pid.end()) continue;
    const pb::AddressSpace& saved = state->second->memory();
    if (saved.index().empty()) continue;
    auto tracker = resume_tracker(impl_->options.tracker, process.pid, cookie_of(version.manifest(), saved.index()));
    if (!tracker) continue;
    auto space = std::make_unique<PrivateMemory>(process, std::move(tracker));
    space->resume(PageStoreReader(version, saved.index()).take_index(), saved);
    impl_->join_family(*space, version, saved);
    if (impl_->options.dedup) space->begin_dedup(&version);
    impl_->spaces[process.pid] = std::move(space);
  }
  if (impl_->spaces.empty()) return false;
  for (const pb::MemoryObject& object : capsule.objects()) impl_->objects.resume(version, object);
  return true;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/shared_seed.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>

#include "engine/base/procfs.h"
#include "engine/memory/mapping_check.h"
#include "engine/memory/page_fill.h"
#include "engine/memory/shared_pages.h"

namespace icp {
namespace {

constexpr uint32_t kInit = 1;
// Calls to drop what a member does not have, each some microseconds: more of them would take longer than to fill it.
constexpr size_t kMostForeign = 20'000;

// One that can be made anywhere and given its bounds, protection and advice afterwards.
bool is_plain(const pb::Mapping& mapping) {
  return takes_private_pages(mapping) && !mapping.growsdown() && !mapping.droppable();
}

Range range_of(const pb::Mapping& mapping) { return {mapping.start(), mapping.end()}; }

bool touches(const std::vector<Range>& ranges, const Range& range) {
  const auto it =
      std::partition_point(ranges.begin(), ranges.end(), [&](const Range& r) { return r.end <= range.start; });
  return it != ranges.end() && it->start < range.end;
}

}  // namespace

bool InheritedPages::keeps(const Range& mapping) const { return std::binary_search(kept.begin(), kept.end(), mapping); }

SharedSeed::SharedSeed(const VersionReader& version, const pb::Capsule& capsule, const std::vector<TreeStep>& steps,
                       MappedSources& sources)
    : sources_(sources) {
  for (const TreeStep& step : steps) {
    const bool forks =
        step.kind == TreeStep::kFork || step.kind == TreeStep::kForkSibling || step.kind == TreeStep::kForkHelper;
    if (forks) forked_by_[step.pid] = step.by;
  }
  for (const pb::Process& process : capsule.processes()) {
    const std::string& store = process.memory().shared_index();
    if (store.empty() || process.state() == pb::Process::ZOMBIE) continue;
    Family& family = families_[store];
    if (!family.reader) family.reader = std::make_unique<PageStoreReader>(version, store);
    family.members.push_back(&process);
  }
  for (auto& [store, family] : families_) {
    if (family.members.size() < 2) continue;
    find_holder(family);
    find_pages(family);
    find_mappings(family);
  }
}

// The last one that all members have among those they come from, themselves included.
void SharedSeed::find_holder(Family& family) const {
  std::vector<uint32_t> common;
  for (const pb::Process* member : family.members) {
    std::vector<uint32_t> line{member->pid()};
    for (auto by = forked_by_.find(member->pid()); by != forked_by_.end(); by = forked_by_.find(by->second))
      line.push_back(by->second);
    std::reverse(line.begin(), line.end());
    if (common.empty()) common = line;
    const auto differ = std::mismatch(common.begin(), common.end(), line.begin(), line.end());
    common.erase(differ.first, common.end());
  }
  family.holder = common.empty() ? kInit : common.back();
}

void SharedSeed::find_pages(Family& family) {
  std::vector<std::pair<uint64_t, int>> edges;
  for (const pb::Process* member : family.members) {
    for (const Range& range : shared_pages_of(member->memory())) {
      edges.emplace_back(range.start, 1);
      edges.emplace_back(range.end, -1);
    }
  }
  std::sort(edges.begin(), edges.end());
  int depth = 0;
  uint64_t begin = 0;
  for (const auto& [at, change] : edges) {
    if (depth < 2 && depth + change >= 2) begin = at;
    if (depth >= 2 && depth + change < 2) append_range(family.pages, {begin, at});
    depth += change;
  }
}

// Equal for mappings of which one may be a part of the other: the same memory lies at the same address.
std::string SharedSeed::source_of(const pb::Mapping& mapping) const {
  const bool anonymous = mapping.kind() == pb::Mapping::ANONYMOUS;
  return fmt::format("{} {} {}", mapping.noreserve(), anonymous ? 0 : mapping.start() - mapping.offset(),
                     anonymous ? "" : sources_.name_of(mapping));
}

void SharedSeed::find_mappings(Family& family) const {
  std::vector<SharedMapping> found;
  for (const pb::Process* member : family.members) {
    for (const pb::Mapping& mapping : member->memory().mappings()) {
      if (is_plain(mapping) && touches(family.pages, range_of(mapping)))
        found.push_back({range_of(mapping), source_of(mapping), &mapping});
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const SharedMapping& a, const SharedMapping& b) { return a.range.start < b.range.start; });
  // What overlaps is one, what meets is not.
  for (SharedMapping& mapping : found) {
    if (family.mappings.empty() || family.mappings.back().range.end <= mapping.range.start) {
      family.mappings.push_back(std::move(mapping));
      continue;
    }
    SharedMapping& last = family.mappings.back();
    last.range.end = std::max(last.range.end, mapping.range.end);
    last.agreed = last.agreed && last.source == mapping.source;
  }
  std::erase_if(family.mappings, [](const SharedMapping& mapping) { return !mapping.agreed; });
}

// Writable, whatever the members have it as: they change that (AddressSpaceRestore::take_over).
void SharedSeed::map(const SharedMapping& mapping, RemoteProcess& remote) {
  const pb::Mapping& like = *mapping.like;
  uint64_t flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | (like.noreserve() ? MAP_NORESERVE : 0);
  uint64_t fd = ~0ull, offset = 0;
  if (like.kind() == pb::Mapping::ANONYMOUS) {
    flags |= MAP_ANONYMOUS;
  } else {
    fd = static_cast<uint64_t>(sources_.open(remote, like));
    offset = like.offset();
  }
  remote.call("mmap", SYS_mmap,
              {mapping.range.start, mapping.range.bytes(), PROT_READ | PROT_WRITE, flags, fd, offset});
}

void SharedSeed::fill(uint32_t pid, RemoteProcess& remote) {
  for (auto& [store, family] : families_) {
    if (family.holder != pid || family.mappings.empty()) continue;
    // A random address of icp-init's may be one of them.
    std::vector<Range> taken;
    for (const MapsEntry& entry : MapsEntry::read(remote.pid())) append_range(taken, {entry.start, entry.end});
    std::erase_if(family.mappings, [&](const SharedMapping& mapping) { return touches(taken, mapping.range); });
    pb::AddressSpace memory;
    std::vector<Range> where;
    for (const SharedMapping& shared : family.mappings) {
      map(shared, remote);
      pb::Mapping& mapping = *memory.add_mappings();
      mapping.set_start(shared.range.start);
      mapping.set_end(shared.range.end);
      mapping.set_prot(PROT_READ | PROT_WRITE);
      append_range(where, shared.range);
    }
    sources_.close(remote);
    family.pages = intersect(family.pages, where);
    PageFill pages;
    pages.add(remote.pid(), memory, *family.reader, family.pages, {});
    pages.run();
    note_inheritance(family);
  }
}

bool SharedSeed::is_kept(const Family& family, const pb::Mapping& mapping) const {
  if (!is_plain(mapping)) return false;
  const auto it = std::partition_point(family.mappings.begin(), family.mappings.end(),
                                       [&](const SharedMapping& m) { return m.range.end <= mapping.start(); });
  return it != family.mappings.end() && it->range.start <= mapping.start() && mapping.end() <= it->range.end &&
         it->source == source_of(mapping);
}

void SharedSeed::note_inheritance(const Family& family) {
  for (const pb::Process* member : family.members) {
    InheritedPages inherited;
    std::vector<Range> where;
    for (const pb::Mapping& mapping : member->memory().mappings()) {
      if (!is_kept(family, mapping)) continue;
      inherited.kept.push_back(range_of(mapping));
      append_range(where, range_of(mapping));
    }
    const std::vector<Range> own = shared_pages_of(member->memory()), there = intersect(family.pages, where);
    inherited.present = intersect(own, there);
    inherited.foreign = subtract(there, own);
    if (!inherited.present.empty() && inherited.foreign.size() <= kMostForeign)
      inherited_[member->pid()] = std::move(inherited);
  }
}

void SharedSeed::leave(RemoteProcess& init) const {
  for (const auto& [store, family] : families_) {
    if (family.holder != kInit) continue;
    for (const SharedMapping& mapping : family.mappings)
      init.call("munmap", SYS_munmap, {mapping.range.start, mapping.range.bytes()});
  }
}

const InheritedPages* SharedSeed::of(uint32_t pid) const {
  const auto found = inherited_.find(pid);
  return found == inherited_.end() ? nullptr : &found->second;
}

const PageStoreReader* SharedSeed::store_of(const pb::AddressSpace& memory) const {
  const auto found = families_.find(memory.shared_index());
  return found == families_.end() ? nullptr : found->second.reader.get();
}

}  // namespace icp

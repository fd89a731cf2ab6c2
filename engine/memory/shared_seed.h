// SPDX-License-Identifier: GPL-2.0-or-later
// Pages that relatives shared, shared again after a restart: they are in the memory of a process under construction
// when that forks the others.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/image/image.pb.h"
#include "engine/image/page_store.h"
#include "engine/memory/mapped_sources.h"
#include "engine/memory/page_ranges.h"
#include "engine/restore/tree_plan.h"
#include "engine/trace/remote_process.h"

namespace icp {

// What a process has in its memory before its own is made. All lists are normalised but `kept`.
struct InheritedPages {
  std::vector<Range> kept;     // mappings of its own that are there already, with the bounds they should have
  std::vector<Range> present;  // pages in these that are its own
  std::vector<Range> foreign;  // pages in these that are not
  bool keeps(const Range& mapping) const;
};

// The families of a capsule, and for each the process that all its members come from, perhaps by way of others: what
// two of them share or more is put there when it has been made and has forked none of them: in anonymous memory, or in
// private mappings of files. What cannot be shared, because something of icp-init's lies there or the members have
// other ideas of the mapping, each of them gets for itself.
class SharedSeed {
 public:
  // `sources` outlives it.
  SharedSeed(const VersionReader& version, const pb::Capsule& capsule, const std::vector<TreeStep>& steps,
             MappedSources& sources);

  // `pid` (1: init) has been made, and nothing has been forked from it: maps and fills what it has to hand on.
  void fill(uint32_t pid, RemoteProcess& remote);
  // All processes have been made: nothing of it stays in init.
  void leave(RemoteProcess& init) const;
  // Null for a process that has inherited nothing of use.
  const InheritedPages* of(uint32_t pid) const;
  // The store of the pages that relatives share; null when it has none.
  const PageStoreReader* store_of(const pb::AddressSpace& memory) const;

 private:
  // What is made in the holder, once for all members.
  struct SharedMapping {
    Range range;              // all of what members map there
    std::string source;       // what they must agree about, see source_of()
    const pb::Mapping* like;  // the first of theirs, which begins where it does
    bool agreed = true;
  };
  struct Family {
    std::unique_ptr<PageStoreReader> reader;
    std::vector<const pb::Process*> members;
    uint32_t holder = 0;
    std::vector<Range> pages;             // that two members have or more
    std::vector<SharedMapping> mappings;  // that are made in the holder; ascending, no two overlap
  };
  void find_holder(Family& family) const;
  static void find_pages(Family& family);
  void find_mappings(Family& family) const;
  std::string source_of(const pb::Mapping& mapping) const;
  void map(const SharedMapping& mapping, RemoteProcess& remote);
  void note_inheritance(const Family& family);
  bool is_kept(const Family& family, const pb::Mapping& mapping) const;

  MappedSources& sources_;

  std::map<uint32_t, uint32_t> forked_by_;
  std::map<std::string, Family> families_;  // by their stores
  std::map<uint32_t, InheritedPages> inherited_;
};

}  // namespace icp

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
// two of them share or more is put there when it has been made and has forked none of them. Only anonymous memory; what
// cannot be shared, because something of icp-init's lies there or the members have other ideas of the mapping, each of
// them gets for itself.
class SharedSeed {
 public:
  SharedSeed(const VersionReader& version, const pb::Capsule& capsule, const std::vector<TreeStep>& steps);

  // `pid` (1: init) has been made, and nothing has been forked from it: maps and fills what it has to hand on.
  void fill(uint32_t pid, RemoteProcess& remote);
  // All processes have been made: nothing of it stays in init.
  void leave(RemoteProcess& init) const;
  // Null for a process that has inherited nothing of use.
  const InheritedPages* of(uint32_t pid) const;
  // The store of the pages that relatives share; null when it has none.
  const PageStoreReader* store_of(const pb::AddressSpace& memory) const;

 private:
  struct Family {
    std::unique_ptr<PageStoreReader> reader;
    std::vector<const pb::Process*> members;
    uint32_t holder = 0;
    std::vector<Range> pages;     // that two members have or more
    std::vector<Range> mappings;  // that are made in the holder; no two overlap
    bool noreserve = false;       // whether those are
  };
  void find_holder(Family& family) const;
  static void find_pages(Family& family);
  static void find_mappings(Family& family);
  void note_inheritance(const Family& family);

  std::map<uint32_t, uint32_t> forked_by_;
  std::map<std::string, Family> families_;  // by their stores
  std::map<uint32_t, InheritedPages> inherited_;
};

}  // namespace icp

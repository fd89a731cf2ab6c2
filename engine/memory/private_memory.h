// SPDX-License-Identifier: GPL-2.0-or-later
// The private pages of one address space over the versions of a session.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/base/mutex.h"
#include "engine/image/image_dir.h"
#include "engine/image/page_hash.h"
#include "engine/image/page_store.h"
#include "engine/memory/mapping_list.h"
#include "engine/memory/page_copier.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/shared_pages.h"
#include "engine/memory/staging.h"
#include "engine/process/stopped_tree.h"
#include "engine/tracker/page_tracker.h"

namespace icp {

// What makes a version right, for each page of a private mapping: the index finds what the page held at the stop, or
// nothing when it held zeros (or its file's content). It is kept by these rules:
//  1. The tracker's answer "unwritten" is believed only for addresses that the pass before collected as the same class
//     of mapping (`armed_`); everything else is taken whole.
//  2. What a pass reports as written is in `pending_` until it has been copied; what a copy while the process runs
//     could not read stays there until the stop.
//  3. At the stop the list of pages with data is complete, and the index loses whatever is not in it.
//  4. After anything went wrong all is forgotten and the next version takes everything.
class PrivateMemory {
 public:
  PrivateMemory(const ProcessRef& process, std::unique_ptr<PageTracker> tracker);

  const ProcessRef& process() const { return process_; }
  PageTracker& tracker() { return *tracker_; }
  const std::string& store() const { return store_; }

  // The version under way; `store` is its name there.
  void begin(VersionWriter& version, const std::string& store);
  bool begun() const { return writer_ != nullptr; }
  // Forgets what the index says (rule 4).
  void forget();

  // While the process runs: one pass over its private mappings. Then the copy of what it found written.
  uint64_t precopy_collect();
  void precopy_copy();
  // At the stop: all mappings in `mappings`.
  // Pages are copied into the arena, or written at once when it is full.
  void collect(const std::vector<MemoryMapping>& mappings, StagingArena& arena, bool distrust_precopy);
  // After the stop: copies and erasures into the store.
  void write();

  // The version that the index describes lies in `version` now (folded). Nothing to do for an index that was forgotten.
  void reload(const VersionReader& version);
  // Pages that hold what they held before are not stored again from now on. With `version` (which the index describes),
  // what they hold is known at once, otherwise from the next store on.
  void begin_dedup(const VersionReader* version);

  // Before the first version of a process restored from `version`, but written to since, nobody knows where: goes on
  // from the index of `store`. Everything is looked at, and what holds what it held is not stored again; end_dedup()
  // after that version.
  void inherit(const VersionReader& version, const std::string& store);
  void end_dedup() { hashes_.reset(); }

  // Instead of write(), when the process is not part of the version after all: what was pre-copied stays unused.
  void close_unused();

  // Whether fork() may have let it share pages with other processes (see PageCopier).
  void set_has_relatives(bool has) { has_relatives_ = has; }

  // Where pages lie that it shares with relatives, or null: set once, before they are begun. Of the pages that its
  // index describes, as of `version` (or null), those that are there need not be here.
  void set_family(std::shared_ptr<SharedPages> family, const VersionReader* version);
  const std::shared_ptr<SharedPages>& family() const { return family_; }
  // What it has there, normalised.
  const std::vector<Range>& shared_pages() const { return shared_; }
  void set_shared_pages(std::vector<Range> pages) { shared_ = std::move(pages); }
  // All that the index has described is shared from now on.
  PageIndex give_index_away();

  // Goes on from a restored version: the index describes the memory as it is at this moment (stopped).
  void adopt(const std::string& store, PageIndex index, const std::vector<MemoryMapping>& mappings);
  // Goes on from a version of an earlier agent: the index describes the memory as it was when the tracker's last pass
  // collected the mappings of `saved`. The process may run.
  void resume(PageIndex index, const pb::AddressSpace& saved);

  uint64_t written_pages() const { return writer_ ? writer_->records() : written_; }
  uint64_t total_pages() const { return index_->pages(); }
  bool full() const { return full_; }
  MappingCache& mapping_cache() { return mapping_cache_; }
  // Mappings as of the last precopy_collect().
  const std::vector<MemoryMapping>& running_mappings() const { return running_; }

 private:
  struct Armed {
    Range range;
    MappingClass kind;
  };
  // Copied at once, hence together in memory.
  struct Staged {
    std::vector<Piece> pieces;
    bool zeros_are_absent;
  };
  bool collect_mapping(const MemoryMapping& mapping, std::vector<Armed>& armed, std::vector<PageRange>& pages);
  // Where one thread copies to, and what it does with it then.
  struct Copying {
    PageCopier::Allocate allocate;
    PageCopier::Deliver deliver;
  };
  void copy_side_by_side(std::span<const Range> ranges, std::vector<Range>& missing,
                         const std::function<Copying(std::vector<std::byte>& buffer)>& make);
  // Pieces into the store, or the family's.
  void put(std::span<const Piece> pieces, bool zeros_are_absent);
  void settle_shared();
  void stage(std::span<const Range> ranges, bool zeros_are_absent, StagingArena& arena, std::vector<Range>& missing);

  ProcessRef process_;
  std::unique_ptr<PageTracker> tracker_;
  MappingCache mapping_cache_;
  std::string store_;
  std::unique_ptr<PageIndex> index_;
  std::unique_ptr<PageHashes> hashes_;       // of what the index describes; null: pages are stored whenever written
  std::unique_ptr<PageStoreWriter> writer_;  // after index_: it refers to it
  bool full_ = true;
  bool has_relatives_ = true;
  uint64_t written_ = 0;

  std::vector<Armed> armed_;      // what the last pass collected, ascending
  std::vector<Range> pending_;    // written, not copied yet
  std::vector<Range> precopied_;  // copied in this version while the process ran
  std::vector<MemoryMapping> running_;
  struct ToCopy {
    Range range;
    bool zeros_are_absent;
  };
  std::vector<ToCopy> to_copy_;  // found by the last precopy_collect()
  std::vector<Range> data_;      // at the stop: all pages with data
  std::vector<Staged> staged_;

  std::shared_ptr<SharedPages> family_;
  std::vector<Range> shared_;  // pages that lie there
  Mutex put_mutex_;
  // Since the last settle_shared(), not normalised.
  std::vector<Range> put_here_ ICP_GUARDED_BY(put_mutex_), put_there_ ICP_GUARDED_BY(put_mutex_);
};

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// Memory with a life of its own (System V segments, memfds, shared anonymous memory, shared files) over the versions
// of a session.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/image/image_dir.h"
#include "engine/image/page_hash.h"
#include "engine/image/page_store.h"
#include "engine/memory/mapping_list.h"
#include "engine/memory/object_source.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/staging.h"

namespace icp {

// One object. Its content is compared page by page, by hash, with what was last saved, so a page is stored only when it
// differs; which pages need to be looked at at all is the caller's knowledge. Offsets are bytes into the object.
class SharedObject {
 public:
  SharedObject(uint32_t id, const ObjectKey& key);

  uint32_t id() const { return id_; }
  const ObjectKey& key() const { return key_; }
  const std::string& store() const { return store_; }

  // A round: where the content can be read, and which parts of the object are of interest (all of it unless set).
  void set_source(std::unique_ptr<ObjectSource> source, const std::string& target);
  bool has_source() const { return source_ != nullptr; }
  // A descriptor of the object itself; -1 when there is none.
  int source() const { return source_ ? source_->fd() : -1; }
  void add_mapping(pid_t pid, const MapsEntry& maps);
  void add_window(Range window);
  void end_round();
  const struct stat& status() const { return status_; }
  // Link target of the source without " (deleted)".
  const std::string& target() const { return target_; }

  void begin(VersionWriter& version);
  bool begun() const { return writer_ != nullptr; }
  void forget();
  // True when every page's hash is known.
  bool content_known() const { return known_; }

  // Looks at everything: pages that have changed go into the store. With an arena (the processes are stopped) pages are
  // only copied, as far as it has room, and write() looks at them.
  void update_all(StagingArena* arena);
  // Looks at these ranges only.
  void update(const std::vector<Range>& ranges, StagingArena* arena);
  void write();
  void close_unused();  // instead of write(), when nobody has the object any more
  // The version that the index describes lies in `version` now (folded).
  void reload(const VersionReader& version);
  // Goes on from a restored version, whose content it has at this moment.
  void adopt(PageIndex index);
  // Goes on from a version of an earlier agent, whose content has these hashes.
  void resume(PageIndex index, const PageHashes& hashes);

  // Bytes in memory of the source.
  uint64_t data_bytes() const { return static_cast<uint64_t>(status_.st_blocks) * 512; }
  uint64_t written_pages() const { return writer_ ? writer_->records() : written_; }
  uint64_t total_pages() const { return index_->pages(); }
  bool full() const { return full_; }
  // `root`: of the processes, where names are looked up. Throws kRefused when none of them leads to a file that has
  // some.
  void fill(int root, pb::MemoryObject& out) const;

 private:
  static constexpr uint64_t kChunk = 1 << 20;  // bytes
  static constexpr size_t kChunkPages = kChunk / 4096;
  struct Hash {
    uint64_t low = 0, high = 0;  // XXH3-128; 0 0: the page holds zeros
    friend bool operator==(const Hash&, const Hash&) = default;
  };
  using ChunkHashes = std::array<Hash, kChunkPages>;
  struct Staged {  // within one chunk
    uint64_t offset;
    std::span<const std::byte> bytes;
  };

  class Look;
  // Compares chunks (their offsets, ascending); with `ranges`, only the pages in them.
  void look_at(const std::vector<uint64_t>& chunks, const std::vector<Range>* ranges, StagingArena* arena);
  void look_at_copies();
  void erase(Range range);
  void fill_names(int root, pb::MemoryObject& out) const;
  static Hash to_hash(const PageHash& hash);  // of a page that is not all zeros
  static Hash hash_page(const std::byte* page);

  uint32_t id_;
  ObjectKey key_;
  std::string store_, target_;
  std::unique_ptr<ObjectSource> source_;
  struct stat status_ {};
  std::vector<Range> windows_;
  std::unique_ptr<PageIndex> index_;
  std::unique_ptr<PageStoreWriter> writer_;
  bool known_ = false, full_ = true, no_writing_ = false;
  uint64_t written_ = 0;
  std::map<uint64_t, std::unique_ptr<ChunkHashes>> hashes_;  // by offset of the chunk; absent: all zeros
  std::vector<Staged> staged_;
  std::vector<Range> erased_;
};

}  // namespace icp

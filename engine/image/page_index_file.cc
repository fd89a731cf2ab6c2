// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/page_index_file.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "engine/base/error.h"
#include "engine/base/parallel.h"
#include "engine/image/image_files.h"
#include "engine/image/page_index_codec.h"
#include "engine/image/page_index_impl.h"
#include "engine/image/sealed_file.h"

namespace icp {
namespace {

struct IndexHeader {
  char magic[8];
  uint32_t format;
  uint32_t version;
  uint64_t store_hash;  // XXH3-64 of the store's name
  uint64_t xxh3;        // of the bytes before
};
static_assert(sizeof(IndexHeader) == 32);

struct IndexTrailer {
  char magic[8];
  uint32_t root_version;  // 0: the index is empty
  uint32_t root_length;
  uint64_t root_offset;
  uint64_t pages;   // of the whole index
  uint64_t tables;  // of the whole index, wherever they are stored
  uint64_t xxh3;    // of the bytes before
};
static_assert(sizeof(IndexTrailer) == 48);

constexpr char kHeaderMagic[8] = {'I', 'C', 'P', 'I', 'N', 'D', 'E', 'X'};
constexpr char kTrailerMagic[8] = {'I', 'C', 'P', 'I', 'X', 'E', 'N', 'D'};
constexpr size_t kFlushBytes = 1 << 20;
constexpr size_t kLeavesOfShare = 64;  // which one thread encodes at a time: some milliseconds
// How much of an index file is read at once; blocks of one file are asked for by ascending offset.
constexpr size_t kWindowBytes = 64 << 10;

// Appends to one index file and hashes what goes by.
class IndexSink {
 public:
  IndexSink(VersionWriter& version, const std::string& name)
      : fd_(version.create_file(name)), path_(version.file_path(name)), hash_(XXH3_createState(), XXH3_freeState) {
    if (!hash_ || XXH3_64bits_reset(hash_.get()) == XXH_ERROR) throw std::bad_alloc();
  }

  std::vector<uint8_t>& buffer() { return buffer_; }
  uint64_t offset() const { return flushed_ + buffer_.size(); }
  void flush() {
    XXH3_64bits_update(hash_.get(), buffer_.data(), buffer_.size());
    write_at(fd_.get(), buffer_.data(), buffer_.size(), flushed_, path_);
    flushed_ += buffer_.size();
    buffer_.clear();
  }
  uint64_t xxh3() const { return XXH3_64bits_digest(hash_.get()); }

 private:
  UniqueFd fd_;
  std::string path_;
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash_;
  std::vector<uint8_t> buffer_;
  uint64_t flushed_ = 0;
};

class IndexWriter {
 public:
  IndexWriter(PageIndex::Impl& index, IndexSink& sink, uint32_t version)
      : index_(index), sink_(sink), version_(version) {}

  // Children first: a parent holds the places of its children. An unchanged table has no changed ones below it.
  void write(IndexTable* table, int level) {
    if (table->stored.version != 0) return;
    if (level == 1) {
      write_leaves(*table);
    } else {
      table->children.for_each([&](unsigned, IndexNode* child) { write(static_cast<IndexTable*>(child), level - 1); });
    }
    std::vector<uint8_t> block;
    encode_table(*table, level, version_, block);
    append(*table, block);
    table->children.pack();
  }

 private:
  void write_leaves(const IndexTable& table) {
    std::vector<IndexLeaf*> changed;
    table.children.for_each([&](unsigned, IndexNode* child) {
      if (child->stored.version == 0) changed.push_back(static_cast<IndexLeaf*>(child));
    });
    std::vector<std::vector<uint8_t>> blocks(changed.size());
    const size_t shares = (changed.size() + kLeavesOfShare - 1) / kLeavesOfShare;
    parallel_for(shares, shares, [&]() -> ItemWork {
      return [&](size_t share) {
        const size_t last = std::min(changed.size(), (share + 1) * kLeavesOfShare);
        for (size_t i = share * kLeavesOfShare; i < last; ++i) {
          encode_leaf(*changed[i], version_, blocks[i]);
          changed[i]->entries.pack();
        }
      };
    });
    for (size_t i = 0; i < changed.size(); ++i) append(*changed[i], blocks[i]);
  }
  void append(IndexNode& node, const std::vector<uint8_t>& block) {
    if (sink_.buffer().size() >= kFlushBytes) sink_.flush();
    node.stored = {version_, static_cast<uint32_t>(block.size()), sink_.offset()};
    sink_.buffer().insert(sink_.buffer().end(), block.begin(), block.end());
    index_.count_table(version_, +1);
  }

  PageIndex::Impl& index_;
  IndexSink& sink_;
  uint32_t version_;
};

// The index files that one load reads, one after the other.
class IndexSource {
 public:
  IndexSource(const VersionReader& version, const std::string& store) : version_(version), store_(store) {}

  IndexTrailer trailer() {
    open(version_.version());
    IndexTrailer trailer{};
    read_at(fd_.get(), &trailer, sizeof trailer, size_ - sizeof trailer, path_);
    if (std::memcmp(trailer.magic, kTrailerMagic, sizeof kTrailerMagic) != 0 ||
        trailer.xxh3 != XXH3_64bits(&trailer, offsetof(IndexTrailer, xxh3))) {
      fail(size_ - sizeof trailer, "trailer is damaged");
    }
    return trailer;
  }

  // The bytes are valid until the next call.
  std::span<const uint8_t> block(const StoredTable& at) {
    if (at.version != current_) open(at.version);
    const uint64_t end = size_ - sizeof(IndexTrailer);
    if (at.offset < sizeof(IndexHeader) || at.offset > end || at.length > end - at.offset ||
        at.length > kMaxBlockBytes) {
      fail(at.offset, "table lies outside the file");
    }
    if (at.offset < window_start_ || at.offset + at.length > window_start_ + window_.size()) {
      window_.resize(std::min<uint64_t>(kWindowBytes, end - at.offset));
      window_start_ = at.offset;
      read_at(fd_.get(), window_.data(), window_.size(), window_start_, path_);
    }
    return std::span<const uint8_t>(window_).subspan(at.offset - window_start_, at.length);
  }

  [[noreturn]] void fail(uint64_t offset, const char* what) const {
    throw_error(ErrorKind::kImage, "{} is damaged at offset {}: {}", path_, offset, what);
  }
  [[noreturn]] void fail_index(const char* what) const {
    throw_error(ErrorKind::kImage, "{} is damaged: {}",
                version_.file_path(version_.version(), index_file_name(store_, version_.version())), what);
  }

 private:
  void open(uint32_t version) {
    const std::string name = index_file_name(store_, version);
    fd_ = version_.open_file(version, name);
    path_ = version_.file_path(version, name);
    size_ = file_size(fd_.get(), path_);
    current_ = version;
    window_.clear();
    window_start_ = 0;
    IndexHeader header{};
    if (size_ < sizeof header + sizeof(IndexTrailer)) {
      throw_error(ErrorKind::kImage, "{} is cut: {} bytes", path_, size_);
    }
    read_at(fd_.get(), &header, sizeof header, 0, path_);
    if (std::memcmp(header.magic, kHeaderMagic, sizeof kHeaderMagic) != 0 ||
        header.xxh3 != XXH3_64bits(&header, offsetof(IndexHeader, xxh3))) {
      fail(0, "header is damaged");
    }
    if (header.format != kImageFormat) {
      throw_error(ErrorKind::kImage, "{} has image format {}, this program reads format {}", path_, header.format,
                  kImageFormat);
    }
    if (header.version != version || header.store_hash != hash_of(store_)) {
      throw_error(ErrorKind::kImage, "{} belongs to another store or version", path_);
    }
  }

  const VersionReader& version_;
  const std::string& store_;
  UniqueFd fd_;
  std::string path_;
  uint64_t size_ = 0;
  uint32_t current_ = 0;
  std::vector<uint8_t> window_;
  uint64_t window_start_ = 0;
};

// Loads level by level, each level ordered by version and offset: every file is opened at most once a level and read
// front to back, however many versions the tables are spread over.
class IndexLoader {
 public:
  IndexLoader(PageIndex::Impl& index, IndexSource& source) : index_(index), source_(source) {}

  void load(const IndexTrailer& trailer) {
    std::vector<Pending> pending;
    if (trailer.root_version != 0) {
      index_.root = new IndexTable;
      pending.push_back({{trailer.root_version, trailer.root_length, trailer.root_offset}, index_.root});
    }
    for (int level = kIndexLevels - 1; level >= 0; --level) {
      std::sort(pending.begin(), pending.end(), [](const Pending& a, const Pending& b) {
        return std::pair(a.stored.version, a.stored.offset) < std::pair(b.stored.version, b.stored.offset);
      });
      check_places(pending, trailer);
      std::vector<Pending> below;
      for (const Pending& item : pending) load_one(item, level, below);
      pending = std::move(below);
    }
  }
  uint64_t tables() const { return tables_; }

 private:
  struct Pending {
    StoredTable stored;
    IndexNode* node;  // empty yet, in its place in the tree
  };

  // Each table has one parent. Without this a small hostile file could name one table many times and unfold to
  // something that fills the memory. Tables of two levels cannot be one: their first bytes differ.
  void check_places(const std::vector<Pending>& pending, const IndexTrailer& trailer) const {
    for (size_t i = 1; i < pending.size(); ++i) {
      const StoredTable &before = pending[i - 1].stored, &at = pending[i].stored;
      if (before.version == at.version && at.offset < before.offset + before.length)
        source_.fail_index("tables overlap");
    }
    if (pending.size() > trailer.tables - tables_) source_.fail_index("it has more tables than it says");
  }

  void load_one(const Pending& item, int level, std::vector<Pending>& below) {
    const auto block = source_.block(item.stored);
    try {
      if (level == 0) {
        auto& leaf = *static_cast<IndexLeaf*>(item.node);
        decode_leaf(block, item.stored.version, leaf);
        leaf.entries.for_each([&](unsigned, uint64_t entry) { index_.count_page(packed_version(entry), +1); });
        index_.pages += leaf.used;
      } else {
        load_table(*static_cast<IndexTable*>(item.node), decode_table(block, level, item.stored.version), level, below);
      }
    } catch (const DecodeError& error) {
      source_.fail(item.stored.offset, error.what);
    }
    item.node->stored = item.stored;
    index_.count_table(item.stored.version, +1);
    ++tables_;
  }

  // Its children are in their places at once, so that none of the tables is unpacked again.
  static void load_table(IndexTable& table, const std::vector<ChildReference>& children, int level,
                         std::vector<Pending>& below) {
    for (const ChildReference& child : children) {
      IndexNode*& place = table.children[child.slot];
      place = level > 1 ? static_cast<IndexNode*>(new IndexTable) : new IndexLeaf;
      ++table.used;
      below.push_back({child.stored, place});
    }
    table.children.pack();
  }

  PageIndex::Impl& index_;
  IndexSource& source_;
  uint64_t tables_ = 0;
};

}  // namespace

void PageIndexFile::write(PageIndex& index, VersionWriter& version, const std::string& store) {
  PageIndex::Impl& impl = *index.impl_;
  const std::string name = index_file_name(store, version.version());
  IndexSink sink(version, name);
  ByteWriter writer(sink.buffer());

  IndexHeader header{};
  std::memcpy(header.magic, kHeaderMagic, sizeof kHeaderMagic);
  header.format = kImageFormat;
  header.version = version.version();
  header.store_hash = hash_of(store);
  header.xxh3 = XXH3_64bits(&header, offsetof(IndexHeader, xxh3));
  writer.raw(&header, sizeof header);

  if (impl.root != nullptr) IndexWriter(impl, sink, version.version()).write(impl.root, kIndexLevels - 1);
  impl.forget_last_leaf();
  impl.drop_unused();

  IndexTrailer trailer{};
  std::memcpy(trailer.magic, kTrailerMagic, sizeof kTrailerMagic);
  if (impl.root != nullptr) {
    trailer.root_version = impl.root->stored.version;
    trailer.root_length = impl.root->stored.length;
    trailer.root_offset = impl.root->stored.offset;
  }
  trailer.pages = impl.pages;
  for (const auto& [number, references] : impl.versions) trailer.tables += references.tables;
  trailer.xxh3 = XXH3_64bits(&trailer, offsetof(IndexTrailer, xxh3));
  writer.raw(&trailer, sizeof trailer);
  sink.flush();
  version.add_file(name, sink.offset(), sink.xxh3());
  version.add_store(store, index.page_versions(), index.table_versions());
}

PageIndex PageIndexFile::load(const VersionReader& version, const std::string& store) {
  PageIndex index;
  IndexSource source(version, store);
  const IndexTrailer trailer = source.trailer();
  const std::string path = version.file_path(version.version(), index_file_name(store, version.version()));
  IndexLoader loader(*index.impl_, source);
  loader.load(trailer);
  if (loader.tables() != trailer.tables || index.pages() != trailer.pages) {
    throw_error(ErrorKind::kImage, "{} is damaged: it describes {} pages in {} tables instead of {} in {}", path,
                index.pages(), loader.tables(), trailer.pages, trailer.tables);
  }
  for (const uint32_t needed : index.versions()) {
    if (!version.needs(needed)) {
      throw_error(ErrorKind::kImage, "{} refers to pages of version {}, which the manifest does not name", path,
                  needed);
    }
  }
  // By these lists files are kept or removed.
  const auto& stores = version.manifest().stores();
  const auto listed = std::find_if(stores.begin(), stores.end(), [&](const auto& one) { return one.store() == store; });
  if (listed == stores.end() || !std::ranges::equal(listed->page_files(), index.page_versions()) ||
      !std::ranges::equal(listed->index_files(), index.table_versions())) {
    throw_error(ErrorKind::kImage, "{} refers to other files than the manifest says", path);
  }
  return index;
}

bool PageIndexFile::refers_to_or_after(const PageIndex& index, uint32_t version) {
  const std::vector<uint32_t> versions = index.versions();
  return !versions.empty() && versions.back() >= version;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// An image: a directory of versions.
//
//   DIR/v000007/<node>/manifest.icp, state.icp, <store>.7.bin, <store>.7.idx
//
// A version under way is written in DIR/.v000007.<node>.tmp and renamed in by commit(). Whatever happens
// before that leaves the last committed version the latest one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"
#include "engine/image/compression.h"
#include "engine/image/image.pb.h"

namespace icp {

struct ImageRoot;
struct KeptVersion;

// A committed version as a listing shows it. Thread-safe value.
struct VersionInfo {
  uint32_t version = 0;
  std::string error;  // not empty: the manifest cannot be read, and why
  pb::Manifest manifest;
};

// A version being made. Created files are 0600, directories 0700, owned by the identity. The destructor of
// an uncommitted version removes what it wrote. One thread at a time.
class VersionWriter {
 public:
  VersionWriter(VersionWriter&&) noexcept;
  ~VersionWriter();

  uint32_t version() const;
  // How page files made from now on are compressed; kNone unless set.
  void set_compression(Compression compression);
  Compression compression() const;
  // Full name of a file of this version, for messages (where it is while the version is being made).
  std::string file_path(const std::string& name) const;
  // Creates a file in the version's directory (O_CREAT|O_EXCL|O_NOFOLLOW), open for reading and writing.
  UniqueFd create_file(const std::string& name);
  // Writes a checksummed block file (state.icp ...) and records it in the manifest.
  void write_sealed(const std::string& name, const std::string& payload);
  // Records a finished file in the manifest; page files carry their own checksums (xxh3 0). Every file created must
  // have been recorded when commit() is called.
  void add_file(const std::string& name, uint64_t bytes, uint64_t xxh3);
  // Notes that this version refers to files of `version`. kImage when that version is no longer in the directory
  // (somebody removed it, or the index belongs to another image): the next version has to be a full one.
  void add_need(uint32_t version);
  // Notes which versions' page and index files a store refers to, each ascending; needs them all.
  void add_store(const std::string& name, const std::vector<uint32_t>& page_files,
                 const std::vector<uint32_t>& index_files);
  uint64_t bytes_written() const;
  // Fills in format, version, files, needs and, where they are empty, release and stats.bytes_written; writes the
  // manifest and flushes everything.
  void finish(pb::Manifest manifest);
  // Renames what was finished into place and flushes the directory. The version is the latest one when this returns.
  void publish();
  void commit(pb::Manifest manifest);  // both

  // Gives a file of this version another name; takes one away.
  void rename_file(const std::string& from, const std::string& to);
  void remove_file(const std::string& name);

 private:
  friend class ImageDir;
  friend class ImageCompaction;
  struct Impl;
  explicit VersionWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A committed version opened for reading: manifest checked, every file the manifest names present with its
// size. While one lives, nothing is removed from the image. Const members may be used from several threads. Copies
// share one opened version.
class VersionReader {
 public:
  VersionReader(const VersionReader&);
  VersionReader(VersionReader&&) noexcept;
  ~VersionReader();

  uint32_t version() const;
  const pb::Manifest& manifest() const;
  pb::Capsule read_state() const;
  // Whether the version has a file of this name itself; and reads the message in such a sealed file.
  bool has_file(const std::string& name) const;
  void read_sealed(const std::string& name, google::protobuf::Message& message) const;
  // A file of this version or of one that its manifest names in `needs`; O_NOFOLLOW, regular files only.
  UniqueFd open_file(uint32_t version, const std::string& name) const;
  // Full name of such a file, for messages.
  std::string file_path(uint32_t version, const std::string& name) const;
  // Whether the manifest names `version` in `needs`.
  bool needs(uint32_t version) const;

 private:
  friend class ImageDir;
  friend class ImageCompaction;
  struct Impl;
  explicit VersionReader(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

// What prune() and compact() did.
struct ChainResult {
  uint32_t version = 0;           // compact(): the new version, 0: there was nothing to fold
  std::vector<uint32_t> removed;  // versions that are no more
  uint64_t bytes_freed = 0;       // of files removed
  std::string left;               // not empty: why nothing was removed for now
};

// All access is through a directory descriptor opened once, with the rights of `identity`. A directory that
// belongs to somebody else than the identity (or root), or that group or others may write to, is refused
// with kPermission. A symbolic link as the last component is followed when the identity or root owns it. Thread-safe.
class ImageDir {
 public:
  // Opens, creating the last path component (0700) if missing, and the one before it.
  static ImageDir create(const std::string& path, const Identity& identity, const std::string& node);
  // Opens an existing one for reading. An empty `node` takes the only node there is.
  static ImageDir open(const std::string& path, const Identity& identity, const std::string& node = {});
  ImageDir(ImageDir&&) noexcept;
  ~ImageDir();

  // Names of all nodes that have a part in some version, sorted.
  static std::vector<std::string> nodes_of(const std::string& path, const Identity& identity);

  const std::string& path() const;
  const std::string& node() const;
  // Committed versions of the node, ascending. Leftovers of interrupted versions are not shown, nor what is pruned
  // meanwhile.
  std::vector<VersionInfo> versions() const;
  // The highest committed version of the node, be it damaged: open_version() says so then, rather than that an older
  // one is taken without a word.
  std::optional<uint32_t> latest() const;

  // The highest number of any node, committed or not; 0: none.
  uint32_t highest() const;
  // False for one that was pruned, or never was.
  bool has_version(uint32_t version) const;

  VersionReader open_version(uint32_t version) const;  // kImage if missing or damaged
  // To be held by who takes versions, from the first on: there is one at a time. kBusy otherwise, saying who it is.
  UniqueFd claim() const;
  // A new version. `version` 0: one more than the highest directory of any node, also of a damaged one; a coordinator
  // of several nodes gives all of them the same number, higher than any this node has. Removes leftovers of this node
  // first; kBusy when another process is writing a version of this node right now.
  VersionWriter begin_version(uint32_t version = 0);

  // Reads and checks every byte of a version: manifest, state, indexes, all page records it refers to.
  // Returns the problems found, one sentence each; empty when whole.
  std::vector<std::string> verify(uint32_t version) const;

  // Removes all but the newest `keep` (at least 1) versions of this node whose manifests are whole. Files that these
  // refer to stay, and nothing else; of versions of several nodes those count that all have committed. Damaged versions
  // are left alone. kBusy while somebody reads or writes a version. A crash at any moment loses nothing: a version
  // stops being one by one rename, before its files go.
  ChainResult prune(uint32_t keep) const;
  // Makes a version that holds all pages of the latest one itself and is the latest one then, and prunes all but the
  // newest `keep`. Versions may be taken meanwhile: what they change is taken over; a session goes on from the new
  // version as if it had taken it itself. Reads and checks every page. kBusy when another compaction is at work. A
  // crash leaves what was there. kRefused for versions of several nodes, to which a coordinator gives the numbers.
  ChainResult compact(uint32_t keep, Compression compression = Compression::kNone) const;

 private:
  friend class ImageCompaction;
  explicit ImageDir(std::shared_ptr<const ImageRoot> root);
  VersionReader read_version(uint32_t version, UniqueFd lock, bool whole = true) const;
  std::vector<KeptVersion> readable_versions() const;
  std::shared_ptr<const ImageRoot> root_;
};

}  // namespace icp

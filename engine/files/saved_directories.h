// SPDX-License-Identifier: GPL-2.0-or-later
// Whole directories that are kept with each version (--checkpoint-files=dir:PATH): what the program has made, removed
// or changed by name in them comes back as it was, open at the version or not.
//
// The content of all regular files lies in one page store, each file in an extent of its own: a page that holds what it
// held in the version before is not stored again. Files are read while the processes run, and those that were written
// to meanwhile once more in the stop. Kept are regular files, directories, symbolic links and hard links; sockets,
// FIFOs and devices are left to who has them open, other file systems mounted below alone.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/identity.h"
#include "engine/base/path_map.h"
#include "engine/base/unique_fd.h"
#include "engine/image/page_hash.h"
#include "engine/image/page_store.h"

namespace icp::pb {
class Capsule;
class SavedDirectories;
class SavedDirectory;
class SavedEntry;
}  // namespace icp::pb

namespace icp {

enum class ChangedFiles;

// Device and inode.
using InodeKey = std::pair<uint64_t, uint64_t>;

// Over the versions of a session. One thread.
class SavedDirectories {
 public:
  // Whole paths without links in them, as the processes see them.
  SavedDirectories(std::vector<std::string> paths, Identity identity);
  ~SavedDirectories();

  bool empty() const { return paths_.empty(); }
  // A version into `image` of processes with the root directory `root`; `parent`: the one of this session before it, 0:
  // none. Another one than the last written here means that the store is begun anew. kRefused for what is no directory
  // that can be kept.
  void begin(VersionWriter& version, const std::string& image, uint32_t parent, UniqueFd root);
  // Reads what has changed; the last time with all processes stopped. kRefused for what may not be read.
  void read();
  // Once they run again.
  void write();
  // The version was given up.
  void abandon();

 private:
  struct File {
    struct stat stat {};  // when it was read
    uint64_t address = 0, capacity = 0;
    int64_t read_ns = 0;  // CLOCK_REALTIME before that
    unsigned pass = 0;
    bool read = false;
  };

  void read_directory(int directory, const std::string& name, const std::string& path, dev_t device,
                      pb::SavedDirectory& to);
  void read_entry(int directory, const std::string& last, const std::string& name, const std::string& path,
                  dev_t device, pb::SavedDirectory& to);
  bool read_file(int directory, const std::string& last, const std::string& path, File& file);
  void make_room(File& file, uint64_t bytes);

  UniqueFd open(const std::string& path) const;

  std::vector<std::string> paths_;
  Identity identity_;
  UniqueFd root_;
  InodeKey image_;
  std::map<InodeKey, File> files_;
  uint64_t end_ = 0;  // of the extents
  unsigned pass_ = 0;
  uint32_t last_version_ = 0;
  PageIndex index_;
  PageHashes hashes_;
  VersionWriter* version_ = nullptr;
  std::unique_ptr<PageStoreWriter> writer_;
  std::unique_ptr<pb::SavedDirectories> list_;
  std::vector<std::byte> buffer_;
};

// Before anything is restored: the directories are made as they were at the version. What is replaced or has been made
// since is moved to PATH.after-checkpoint. Returns the files that were written to or made again, by device and inode as
// they were then. Files that the image maps come back with the memory; those of `in_use`, the standard streams that the
// processes get, stay as they are, and so do this process's own. A directory that is gone is made, not those above it.
std::set<InodeKey> put_back_directories(const VersionReader& version, const pb::Capsule& capsule,
                                        const Identity& identity, int root_fd, ChangedFiles changed,
                                        const std::vector<int>& in_use = {}, const PathMap& paths = {});

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// Memory objects of an image, made again.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/image/image_dir.h"
#include "engine/image/page_store.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/restored_files.h"
#include "engine/memory/written_files.h"
#include "engine/sysv/ipc_access.h"
#include "engine/sysv/sysv_ipc.h"

namespace icp {

// Objects live as descriptors in the agent until the processes map them; System V segments live in the calling thread's
// IPC namespace. Files that exist outside are not changed before apply_side_effects(). A file made here is removed
// again unless that was called. What has a name of the object's now and is another file (device, inode) is replaced if
// nobody uses it and it is the user's, else refused.
class ObjectRestore {
 public:
  ObjectRestore(const VersionReader& version, const pb::Capsule& capsule, RestoredFiles& files,
                const RestoredSysv* sysv, IpcAccess* ipc);
  ~ObjectRestore();
  ObjectRestore(const ObjectRestore&) = delete;
  ObjectRestore& operator=(const ObjectRestore&) = delete;

  // Hostile numbers, missing files. Changes nothing.
  void check() const;
  void create();
  // A new open file description; not for System V.
  UniqueFd open(uint32_t id, uint32_t flags) const;
  // The same for a descriptor of a process. Of a memfd the first is the one that made it: a program in one that has
  // been opened for writing by another way cannot be run (ETXTBSY).
  UniqueFd open_for_process(uint32_t id, uint32_t flags);
  // The description of the image, kImage when there is none with this number.
  const pb::MemoryObject& find(uint32_t id) const;
  const WrittenFiles& written_files() const { return written_files_; }
  int new_shmid(const pb::MemoryObject& object) const;
  void keep_changed() { keep_changed_ = true; }
  // Nothing is made or written outside: objects with names are stood in for by ones without.
  void set_dry() { dry_ = true; }
  // Mapped files that were gone and are made again, by device and inode at the checkpoint.
  std::set<std::pair<uint64_t, uint64_t>> remade() const;
  void apply_side_effects();

 private:
  struct Made {
    UniqueFd fd;
    bool remade = false;                         // it was gone
    bool given = false;                          // a process has this description
    bool late = false;                           // content comes with apply_side_effects()
    std::vector<std::string> directories;        // the same
    std::vector<std::string> names;              // made here, to be removed unless all goes well
    std::map<std::string, std::string> renames;  // of these, when all goes well
    std::string aside;                           // where a newer file of the object's name is now
  };
  void create_one(const pb::MemoryObject& object);
  bool runs(const pb::MemoryObject& object) const;
  static void keep_readable_only(const pb::MemoryObject& object, Made& made);
  bool holds_saved_content(const pb::MemoryObject& object, int fd) const;
  void create_deleted(const pb::MemoryObject& object, Made& made);
  void create_mapped(const pb::MemoryObject& object, Made& made);
  void create_stand_in(const pb::MemoryObject& object, Made& made);
  bool is_whole(const pb::MemoryObject& object) const;
  UniqueFd find_mapped(const pb::MemoryObject& object) const;
  bool made_later(int fd) const;
  bool may_put_aside(const pb::MemoryObject& object, int fd, const struct stat& now) const;
  void put_aside(const std::string& path, Made& made);
  void create_shm(const pb::MemoryObject& object, Made& made);
  void give_name(const pb::MemoryObject& object, const std::string& path, Made& made);
  void set_owner_and_mode(const pb::MemoryObject& object, int fd) const;
  void fill_file(const pb::MemoryObject& object, int fd);
  void fill_segment(const pb::MemoryObject& object);
  void overwrite_file(const pb::MemoryObject& object, int fd);
  void add_seals(const pb::MemoryObject& object, int fd);
  std::vector<Range> windows(const pb::MemoryObject& object) const;

  const VersionReader& version_;
  const pb::Capsule& capsule_;
  RestoredFiles& files_;
  const RestoredSysv* sysv_;
  IpcAccess* ipc_;
  std::map<uint32_t, const pb::MemoryObject*> by_id_;
  const WrittenFiles written_files_;
  std::map<uint32_t, Made> made_;
  bool done_ = false, keep_changed_ = false, dry_ = false;
};

}  // namespace icp

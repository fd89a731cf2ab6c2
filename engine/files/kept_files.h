// SPDX-License-Identifier: GPL-2.0-or-later
// What regular files hold that the processes have open: all of small ones, for the case that they are gone or changed
// at a restart, and of the others a hash, which tells a file that was only added to from one that was changed.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/unique_fd.h"

namespace icp {

class FileScan;
struct Description;

// XXH3-128 of a beginning of a file, to be continued.
class FileHash {
 public:
  struct Value {
    uint64_t low = 0, high = 0;
    friend bool operator==(const Value&, const Value&) = default;
  };

  FileHash();
  ~FileHash();
  FileHash(FileHash&&) noexcept;
  FileHash& operator=(FileHash&&) noexcept;

  uint64_t bytes() const { return bytes_; }
  Value value() const;
  void restart();
  void add(std::span<const char> bytes);
  // Reads on from where it is up to `end`; false when the file ends before, or cannot be read.
  bool read_on(int fd, uint64_t end);

 private:
  struct State;
  std::unique_ptr<State> state_;
  uint64_t bytes_ = 0;
};

// Over the versions of a session: a file that has not been written to is not read again, and of one that has grown only
// the end. Nearly all is read before the stop. A hash may thus be of what the file held some time before the stop: at a
// restart it then fits nothing, and the file counts as changed. One thread.
class KeptFiles {
 public:
  // Before the stop: reads what is new in the files of a scan.
  void look(FileScan& scan);
  // All of larger ones that are open for writing, too: `save` gives the number of the memory object that holds it
  // (pb::MemoryObject.id), from the time of the stop.
  void save_whole(std::function<uint32_t(int local_fd, const std::string& target)> save) { save_ = std::move(save); }
  // Descriptors of those, found by the last look().
  struct OpenFile {
    UniqueFd fd;
    std::string path;
  };
  std::vector<OpenFile> take_large() { return std::exchange(large_, {}); }
  // In the stop, for all regular files: fills message.regular.
  void capture(FileScan& scan, std::span<Description* const> descriptions);

 private:
  using Inode = std::pair<dev_t, ino_t>;
  struct File {
    struct stat stat {};  // before it was read
    bool read = false;    // stat is right
    int64_t read_ns = 0;  // CLOCK_REALTIME before it was read
    FileHash hash;
    FileHash::Value head;  // of its first bytes, as many as head_bytes
    uint64_t head_bytes = 0;
    bool whole = false;  // content is all of it
    std::string content;
  };

  bool may_keep(const Description& description);
  void read(FileScan& scan, Description& description, bool keep, uint64_t most, bool stopped);
  static void hash(File& file, int fd, const struct stat& now, uint64_t most, bool stopped);
  static void read_whole(File& file, int fd, uint64_t size);
  void begin();

  std::function<uint32_t(int, const std::string&)> save_;
  std::vector<OpenFile> large_;
  std::map<Inode, File> files_;
  // In the version being taken.
  std::set<Inode> seen_, chosen_;
  uint64_t chosen_bytes_ = 0, read_bytes_ = 0;
};

}  // namespace icp

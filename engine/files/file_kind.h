// SPDX-License-Identifier: GPL-2.0-or-later
// The common shape of all kinds of files. A new kind is a new pair of files and a line in file_kind.cc.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/files/file_scan.h"
#include "engine/files/file_table.h"
#include "engine/files/inet_address.h"
#include "engine/image/image.pb.h"

namespace icp {

using Descriptions = std::span<Description* const>;
using ImageFiles = std::span<const pb::OpenFile* const>;

// A socket that has been bound.
struct BoundPort {
  int type = 0;  // SOCK_STREAM, SOCK_DGRAM
  uint16_t port = 0;
  int fd = -1;
};

// A pseudo terminal of a restore. The slave is held until the processes have it.
struct RestoredPty {
  int master = -1;  // RestoreContext::fds has it
  UniqueFd slave;   // none: it has never been open
};

// What a kind works with while descriptions are made in the agent.
class RestoreContext {
 public:
  explicit RestoreContext(const FileRestoreOptions& opts);
  ~RestoreContext();
  RestoreContext(const RestoreContext&) = delete;
  RestoreContext& operator=(const RestoreContext&) = delete;

  const FileRestoreOptions& options;

  // Takes the descriptor made for a file. Throws kImage when it has one already.
  void put(const pb::OpenFile& file, UniqueFd fd);
  int get(uint32_t id) const;  // -1: none (yet)
  // Runs from apply_side_effects(), in the order of the calls. `action` throws on failure.
  void later(std::function<void()> action) { side_effects.push_back(std::move(action)); }

  bool is_made_inside(uint32_t id) const { return made_inside.count(id) != 0; }
  bool added_inside(uint32_t id) const { return is_made_inside(id) || signalfds.count(id) != 0; }

  std::map<uint32_t, UniqueFd> fds;
  std::set<uint32_t> made_inside;  // made later, inside the processes
  std::set<uint32_t> signalfds;    // added to epoll sets inside the processes
  AddressMap addresses;
  std::map<uint32_t, RestoredPty> ptys;         // by number
  std::vector<ConnectionEnd> open_ends;         // connections to other capsules
  std::vector<const pb::OpenFile*> open_files;  // the same ones
  std::vector<ConnectionEnd> other_ends;        // their other ends, known before side effects
  std::vector<std::function<void()>> side_effects;
  // What processes have to send themselves, when they have their descriptors: by pid.
  struct Sender {
    RemoteProcess* remote = nullptr;
    const pb::Process* process = nullptr;
  };
  std::map<uint32_t, Sender> senders;
  std::vector<std::function<void()>> deliveries;
  std::vector<std::function<void()>> unix_refills;  // of queues with descriptors in them, when all files are made
  // Regular files of the image by device and inode then: whose content the image has, those made again here, and those
  // that a memory object brings back.
  using Inode = std::pair<uint64_t, uint64_t>;
  std::map<Inode, const pb::OpenFile*> contents;
  std::set<Inode> remade, mapped;
  std::set<std::string> paths;  // of regular files
  std::set<Inode> settled;      // what is done about changes is done once a file
  std::map<Inode, UniqueFd> removed_directories;
  std::vector<BoundPort> bound_ports;
  std::chrono::milliseconds patience{3000};  // left for ports that are taken
  std::vector<std::function<void()>> undo;   // of what was made outside, unless all went well
};

// What a kind works with while a process gets what only calls inside of it can give.
struct FinishContext {
  RemoteProcess& remote;
  const pb::Process& process;
  const std::map<uint32_t, const pb::OpenFile*>& files;
};

// A kind of file: stateless, one object per kind. Each step gets all files of the kind at once, since some
// only make sense together (both ends of a pipe).
class FileKind {
 public:
  virtual ~FileKind() = default;
  virtual pb::OpenFile::KindCase tag() const = 0;
  // Asked in the order of the table; the first that says yes has the description.
  virtual bool recognises(FileScan& scan, Description& description) const = 0;
  // Before check(): what can only be judged together with other capsules goes into scan.inet. At a capture also what
  // changes although the processes are stopped, into description.message: TCP goes on delivering.
  virtual void survey(FileScan&, Descriptions) const {}
  // scan.refuse()s what cannot be saved. Also at capture, before capture().
  virtual void check(FileScan& scan, Descriptions descriptions) const = 0;
  // Fills description.message beyond id, flags and position. Reads only; nothing in the processes changes.
  virtual void capture(FileScan& scan, const ObjectResolver& objects, Descriptions descriptions) const = 0;
  // Makes and put()s the descriptions. All values of the image are hostile.
  virtual void create(RestoreContext& context, ImageFiles files) const = 0;
  // Later than create() of every kind: for what refers to other files.
  virtual void connect(RestoreContext&, ImageFiles) const {}
  // In the process, for each of its descriptors of this kind.
  virtual void finish(FinishContext&, const pb::FileDescriptor&, const pb::OpenFile&) const {}
};

// All kinds, in the order in which recognises() is asked; the last one recognises everything.
std::span<const FileKind* const> file_kinds();
// The kind that restores a message; throws kImage for a message of no known kind.
const FileKind& file_kind(const pb::OpenFile& file);

// "/path" or "pipe 3": how an error names a file of an image.
std::string image_file_name(const pb::OpenFile& file);
[[noreturn]] void throw_bad_file(const pb::OpenFile& file, const std::string& what);

// A kind whose files have nothing to do with each other.
class SingleFileKind : public FileKind {
 public:
  void check(FileScan& scan, Descriptions descriptions) const override;
  void capture(FileScan& scan, const ObjectResolver& objects, Descriptions descriptions) const override;
  void create(RestoreContext& context, ImageFiles files) const override;

 protected:
  virtual void check_one(FileScan&, Description&) const {}
  virtual void capture_one(FileScan& scan, const ObjectResolver& objects, Description& description) const = 0;
  virtual UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const = 0;
};

}  // namespace icp

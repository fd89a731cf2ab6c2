// SPDX-License-Identifier: GPL-2.0-or-later
// The descriptor tables of all processes of a capsule, sorted into open file descriptions.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/finding.h"
#include "engine/base/unique_fd.h"
#include "engine/files/fd_info.h"
#include "engine/files/file_table.h"
#include "engine/files/inet_survey.h"

namespace icp {

class FileKind;
class KeptFiles;

// A descriptor number of a process that refers to a description.
struct FdUse {
  size_t process = 0;  // index into the scan's processes
  int fd = -1;
  bool cloexec = false;
  std::vector<LockLine> locks;  // fdinfo shows POSIX locks only for the process that holds them
};

// One open file description (struct file in the kernel), shared by dup and fork.
struct Description {
  uint32_t id = 0;     // from 1, in the order of the first use
  std::string target;  // link text, for example "/tmp/x", "pipe:[4711]", "anon_inode:[eventfd]"
  struct stat stat {};
  FdInfo info;  // of the first use
  std::vector<FdUse> uses;
  std::optional<OuterStreamId> outer;  // stands for a task's standard stream
  const FileKind* kind = nullptr;
  UniqueFd local;  // the agent's duplicate, see FileScan::take
  bool refused = false;
  pb::OpenFile* message = nullptr;  // at capture

  int access() const { return static_cast<int>(info.flags) & 3; }  // O_RDONLY, O_WRONLY, O_RDWR
};

// A pass over the processes. With findings it is a check of running processes: nothing throws, what vanishes
// meanwhile is left out. Without it is part of a capture: the first thing that cannot be saved throws
// kRefused (kBusy if it may pass). A capture also sees descriptors that are on their way through Unix sockets
// (SCM_RIGHTS): they are descriptors of one more process, the agent, which comes last. One agent thread only.
class FileScan {
 public:
  FileScan(std::vector<ProcessRef> processes, const std::vector<OuterStreamId>& outer, Findings* findings);
  ~FileScan();
  FileScan(const FileScan&) = delete;
  FileScan& operator=(const FileScan&) = delete;

  // Says which task a process (index) belongs to, for streams that several tasks share. Before run().
  void set_ranks(std::vector<std::optional<int>> ranks) { ranks_ = std::move(ranks); }
  void run();

  bool checking() const { return findings_ != nullptr; }
  // A check does not look into sockets: what is there is seen at the capture only.
  bool misses_descriptors() const { return unseen_; }
  const std::vector<ProcessRef>& processes() const { return processes_; }
  std::vector<std::unique_ptr<Description>>& descriptions() { return descriptions_; }
  Description* find(size_t process, int fd);

  // Records or throws "process P (comm), descriptor N: <what>; <hint>".
  void refuse(Description& description, const std::string& what, const std::string& hint, bool transient = false);
  void refuse_process(size_t process, const std::string& where, const std::string& what, const std::string& hint,
                      bool transient);

  // The description that a descriptor of the agent refers to; null if none of the scan's does.
  Description* find_open(int local_fd);
  // The description opened in the agent too (pidfd_getfd), -1 if it has vanished during a check. Kept until
  // the end of the scan.
  int take(Description& description);
  // fdinfo again, after something that brought it up to date. False if gone.
  bool refresh(Description& description);
  // stat of a path as the process sees it; -errno on failure. Tries again with the process's own rights where
  // the agent's do not reach (a root-squashing NFS server).
  int stat_path(size_t process, const std::string& path, struct stat& result);
  // f_type of the file system of the description (cached by device).
  long filesystem(Description& description);
  // Whether a process (index) holds kPmixRelayStream.
  bool is_pmix_relay(size_t process) const { return pmix_relays_.count(process) != 0; }
  // Pid inside the capsule, nothing for a process outside of it.
  std::optional<pid_t> vpid(pid_t pid) const;
  // kcmp(2); -1 on failure. 0 equal, 1 less, 2 greater.
  int compare_files(const FdUse& a, const FdUse& b) const;
  pid_t table_tid(size_t process) const;
  // The process, its parent, whose descriptor table this one shares; nothing of it is this one's then.
  std::optional<size_t> shares_table(size_t process) const;

  // At a capture: what files hold.
  KeptFiles* kept = nullptr;

  // What the network kinds know of connections, from survey() on.
  InetSurvey inet;

 private:
  struct Table;  // one process's descriptor table
  struct Found;  // one descriptor, before it has been sorted

  void open_table(size_t process);
  void read_table(size_t process, std::vector<Found>& found);
  bool read_descriptor(size_t process, int fd, Found& found) const;
  void take_in_flight(std::vector<Found>& found);
  UniqueFd duplicate(const FdUse& use);
  void check_tables();
  void check_thread_tables(size_t process);
  std::optional<size_t> parent_with_table(size_t process) const;
  std::optional<OuterStreamId> match_outer(const Found& found) const;
  void sort_into_descriptions(std::vector<Found>& found);
  void number_descriptions();

  std::vector<ProcessRef> processes_;
  const std::vector<OuterStreamId>& outer_;
  Findings* findings_;
  std::vector<std::optional<int>> ranks_;
  std::vector<std::unique_ptr<Table>> tables_;
  std::vector<UniqueFd> in_flight_;  // copies
  bool unseen_ = false;
  std::vector<std::unique_ptr<Description>> descriptions_;
  std::set<size_t> pmix_relays_;  // processes
  std::vector<std::pair<dev_t, long>> filesystems_;
  std::vector<std::vector<std::pair<int, Description*>>> by_fd_;   // by process, ascending fd
  std::multimap<std::pair<dev_t, ino_t>, Description*> by_inode_;  // made when first needed
};

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// Open files of all processes of a capsule: capture and restore.
//
// One kind of file is one small pair of files in this folder (regular, pipe, eventfd, epoll, timerfd,
// signalfd, unix_socket, char_device, directory ...), behind the common shape in file_kind.h. file_scan finds
// the descriptions, file_lock and file_owner hold what any kind may have.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/finding.h"
#include "engine/base/identity.h"
#include "engine/base/unique_fd.h"
#include "engine/files/network.h"
#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

class KeptFiles;

// No number: a task's connection to its process manager (MPI's PMI_FD), whatever its number. Replaced at a restart as
// standard streams are.
inline constexpr int kPmiStream = 3;
// What the relay of PMIx messages (coordinator/pmix) has to its agent. TCP connections of the process that holds it
// lead to Slurm's PMIx server: after a restart they are reset, and the relay makes new ones.
inline constexpr int kPmixRelayStream = 4;
// What stands in for an srun that the capsule's program has started (LaunchedStep) has this to its agent. The rank is
// the step's number there.
inline constexpr int kLaunchStream = 5;

// A standard stream as a task was started with: identified by device and inode. Descriptors anywhere in the
// capsule that refer to it are "outer": not saved, replaced at a restart by the new task's stream.
struct OuterStreamId {
  int rank = 0;
  int fd = 0;  // 0, 1 or 2, kPmiStream, kPmixRelayStream or kLaunchStream
  uint64_t dev = 0, ino = 0;
  bool include_regular = false;  // also when it is a regular file (Slurm opens a new one at a restart)
};

// Says which memory object (pb::MemoryObject.id) stands for a memfd, /dev/shm file or deleted file that is
// open: the memory module saves the content. Called with the file's fstat and link target.
using ObjectResolver = std::function<uint32_t(int local_fd, const std::string& target)>;

// What in the processes' descriptor tables cannot be checkpointed. Stops nothing; safe on running processes
// (one that ends meanwhile is left out).
void check_files(const std::vector<ProcessRef>& processes, const std::vector<OuterStreamId>& outer, Findings& findings,
                 const NetworkScope& network = {});

// The same, and reads what the files hold, for a version that is about to be taken.
void check_files(const std::vector<ProcessRef>& processes, const std::vector<OuterStreamId>& outer, Findings& findings,
                 const NetworkScope& network, KeptFiles* kept);

// Captures all descriptor tables of stopped processes: fills process.fds, process.posix_locks of the given
// messages (same order) and capsule.files. Descriptions shared by dup or fork are found with kcmp(2).
// Throws kRefused, naming process and descriptor, for what check_files would have named.
void capture_files(std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states,
                   const std::vector<OuterStreamId>& outer, const ObjectResolver& objects, pb::Capsule& capsule,
                   const NetworkScope& network = {}, KeptFiles* kept = nullptr);

enum class CheckpointFiles { kNone, kOpen };

// What is done about a file that was open for writing and holds something else now.
enum class ChangedFiles {
  kRestore,  // it is cut back if it has grown, gets its content back if the image has that, else the restart is refused
  kRefuse,   // the restart is refused
  kAccept,   // it stays as it is
};

struct FileRestoreOptions {
  Identity identity;  // files are opened with these rights
  int root_fd = -1;   // O_PATH of the capsule's root directory, paths are resolved below it
  ChangedFiles changed = ChangedFiles::kRestore;
  bool dry = false;            // see RestoreOptions; apply_side_effects() is not called then
  uint64_t taken_unix_ns = 0;  // when the version was taken; 0: unknown. A file made later is another file
  // New standard streams by task rank.
  std::map<int, std::array<int, 3>> outer;
  std::map<int, int> pmi;       // new connections to the process manager, by task rank
  int pmix_relay = -1;          // new descriptor for kPmixRelayStream
  std::map<int, int> launched;  // new descriptors for kLaunchStream, by the number of the launched step
  // Descriptor of a restored memory object, opened with `flags` (a new open file description).
  std::function<UniqueFd(uint32_t object, uint32_t flags)> open_object;
  NetworkRestore network;
  // Files made again because they were gone, by device and inode then: see MemoryRestore::remade().
  std::set<std::pair<uint64_t, uint64_t>> remade;
  // A description of /dev/tty, opened by a process that has the terminal of `file`; none: there is no such process.
  std::function<UniqueFd(const pb::OpenFile& file)> open_controlling;
  // A process of the capsule, by its number there, in which calls can be made; null: it has none of that number.
  std::function<RemoteProcess*(uint32_t pid)> process_of;
};

// Makes the open file descriptions of an image in the agent; the caller sends them into the processes.
//
// The capsule must outlive this object. One agent thread only.
class FileRestore {
 public:
  FileRestore(const pb::Capsule& capsule, FileRestoreOptions options);
  ~FileRestore();
  // Before create(), if wanted: the pseudo terminals, which sessions need while they are made.
  void create_terminals();
  // The slave of one, valid until apply_side_effects(); -1: the image has none with this number that has been open.
  int pty_slave(uint32_t number) const;
  // Creates all; a missing or changed file throws with its path. Changes nothing outside the agent but FIFOs'
  // content: files are cut back only by apply_side_effects(). Raises the agent's soft RLIMIT_NOFILE to the hard
  // one.
  void create();
  // The agent's descriptor for file `id`, valid as long as this object; -1 for what finish_process() makes in
  // the process itself (pidfds). Throws kImage for an id that the image does not have.
  int local_fd(uint32_t id) const;
  // A removed directory, by device and inode then, that files of the image may refer to, too. O_PATH; valid as long as
  // this object.
  int removed_directory(uint64_t dev, uint64_t ino, const std::string& path);
  // After all processes exist and the descriptors are in place: pidfds (which appear at their numbers), epoll
  // sets that watch them, POSIX locks, F_SETOWN, which need calls in the process.
  void finish_process(RemoteProcess& remote, const pb::Process& process);
  // When finish_process() has been called for all processes, which are where they were then: what they have to send
  // themselves.
  void deliver();
  // Meets the other capsules of the job, see NetworkRestore. Throws if an end of a connection does not fit its other
  // end. Once, before apply_side_effects().
  void meet();
  // Puts back what changed files held, lets TCP connections go, binds and connects Unix sockets that have names. Called
  // once, last, when nothing else can fail any more, before the processes run. Throws the first failure after all has
  // been tried.
  void apply_side_effects();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace icp

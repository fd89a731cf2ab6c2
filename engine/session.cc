// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/session.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/process_signal.h"
#include "engine/base/procfs.h"
#include "engine/base/times.h"
#include "engine/broker/broker.h"
#include "engine/files/held_connections.h"
#include "engine/image/image_layout.h"
#include "engine/memory/host_facts.h"
#include "engine/memory/memory_capture.h"
#include "engine/process/access_check.h"
#include "engine/process/process_check.h"
#include "engine/process/process_state.h"
#include "engine/process/seccomp.h"
#include "engine/process/stopped_tree.h"
#include "engine/session_impl.h"
#include "engine/sysv/sysv_ipc.h"

namespace icp {
namespace {

constexpr int kTransientTries = 20;  // a vfork or an ending process is over within a few milliseconds
constexpr int kLastingTries = 3;
constexpr auto kTransientWait = std::chrono::milliseconds(10);
constexpr size_t kFindingsInText = 5;

// Unix seconds, rounded down generously, of a start time in /proc/PID/stat: clock ticks since boot.
int64_t wall_time_of(uint64_t ticks) {
  const uint64_t boot_ns = now_ns(CLOCK_REALTIME) - now_ns(CLOCK_BOOTTIME);
  return static_cast<int64_t>(boot_ns / 1'000'000'000 + ticks / static_cast<uint64_t>(::sysconf(_SC_CLK_TCK))) - 1;
}

[[noreturn]] void throw_refused(const Findings& findings) {
  const bool transient =
      std::all_of(findings.begin(), findings.end(), [](const Finding& finding) { return finding.transient; });
  std::string text;
  for (size_t i = 0; i < std::min(findings.size(), kFindingsInText); ++i)
    text += (i == 0 ? "" : " | ") + to_sentence(findings[i]);
  if (findings.size() > kFindingsInText) text += fmt::format(" | and {} more", findings.size() - kFindingsInText);
  throw Error(transient ? ErrorKind::kBusy : ErrorKind::kRefused, text);
}

Findings check_now(std::vector<ProcessRef> processes, const std::vector<OuterStreamId>& outer,
                   const NetworkScope& network = {}, MemoryCapture* memory = nullptr, KeptFiles* kept = nullptr) {
  Findings findings;
  check_access(processes, findings);
  if (processes.empty()) return findings;
  check_processes(processes, findings);
  memory != nullptr ? memory->check(processes, findings) : check_memory(processes, findings);
  check_files(processes, outer, findings, network, kept);
  return findings;
}

// A restored capsule has an IPC namespace of its own, all of whose objects are its own, older than its processes; the
// init of its PID namespace is our icp-init.
bool is_of_restored_capsule(pid_t process, const std::string& ipc_space) {
  try {
    if (ipc_space == read_proc_link(::getpid(), "ns/ipc")) return false;
    const std::string pid_space = read_proc_link(process, "ns/pid");
    for (pid_t above = ProcStat::read(process).ppid; above > 1; above = ProcStat::read(above).ppid) {
      if (read_proc_link(above, "ns/pid") != pid_space) return false;
      const ProcStatus status = ProcStatus::read(above);
      if (status.ns_tgid.empty() || status.ns_tgid.back() != 1) continue;
      return ProcStat::read(above).comm == "icp-init" && read_proc_link(above, "ns/ipc") == ipc_space;
    }
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone && error.kind() != ErrorKind::kSystem) throw;
  }
  return false;
}

bool all_tasks_stopped(const pb::Capsule& capsule) {
  std::set<uint32_t> stopped;
  for (const pb::Process& process : capsule.processes())
    if (process.state() != pb::Process::RUNNING) stopped.insert(process.pid());
  return std::all_of(capsule.tasks().begin(), capsule.tasks().end(),
                     [&](const pb::Task& task) { return stopped.contains(task.pid()); });
}

}  // namespace

Session::Impl::Impl(SessionConfig session_config, std::vector<TaskRoot> session_roots)
    : config(std::move(session_config)),
      roots(std::move(session_roots)),
      memory({.tracker = config.tracker,
              .staging_limit = config.staging_limit,
              .precopy_rounds = config.precopy ? 3u : 0u,
              .dedup = config.dedup,
              .keep = config.keep_tracking,
              .root = {}}),
      directories(config.directories, config.identity) {
  if (config.checkpoint_files == CheckpointFiles::kOpen)
    kept_files.save_whole([this](int fd, const std::string& path) { return memory.object_of_open_file(fd, path); });
  control_groups.add_base(groups_of(::getpid()));
  start_seconds = ::time(nullptr);
  for (const TaskRoot& root : roots) {
    try {
      const ProcStat stat = ProcStat::read(root.pid);
      root_start_times.push_back(stat.start_time_ticks);
      start_seconds = std::min(start_seconds, wall_time_of(stat.start_time_ticks));
    } catch (const Error& error) {
      // One task of several may have ended at once.
      if (error.kind() != ErrorKind::kGone || !config.ended_tasks) throw;
      root_start_times.push_back(0);
    }
  }
}

std::vector<pid_t> Session::Impl::root_pids() const {
  std::vector<pid_t> pids;
  for (size_t i = 0; i < roots.size(); ++i) {
    try {
      if (ProcStat::read(roots[i].pid).start_time_ticks == root_start_times[i]) pids.push_back(roots[i].pid);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
  if (config.more_processes) {
    // Those below a root are found below it; the order keeps parents before children.
    for (const pid_t pid : config.more_processes()) pids.push_back(pid);
  }
  return pids;
}

bool Session::Impl::is_root(pid_t pid) const {
  return std::any_of(roots.begin(), roots.end(), [pid](const TaskRoot& root) { return root.pid == pid; });
}

std::vector<ProcessRef> Session::Impl::processes() const { return find_processes(root_pids()); }

SysvScope Session::Impl::sysv_scope(const std::vector<StoppedProcess>& stopped) const {
  SysvScope scope;
  scope.whole_namespace = config.whole_ipc_namespace || ipc_restored;
  scope.uid = config.identity.uid;
  scope.since = start_seconds;
  for (const StoppedProcess& process : stopped) {
    scope.pids.insert(process.ref.pid);
    scope.pids.insert(process.ref.vpid);
    if (process.ref.zombie) continue;
    for (const MapsEntry& entry : process.maps)
      if (entry.path.starts_with("/SYSV")) scope.attached_ids.insert(static_cast<int>(entry.ino));
  }
  return scope;
}

void Session::Impl::prepare(VersionWriter& writer, const CheckpointOptions& options) {
  const std::string image_path = options.image_path.empty() ? config.image_path : options.image_path;
  memory.begin(
      writer, last_version == 0 ? std::function<VersionReader()>() : [this, image_path] {
        return ImageDir::open(image_path, config.identity, config.node).open_version(last_version);
      });
  const std::vector<ProcessRef> running = processes();
  control_groups.note(running);
  for (const ProcessRef& ref : running) {
    if (ref.zombie || !memory.needs_tracker(ref)) continue;
    try {
      StoppedProcess process = stop_process(ref, calls);
      try {
        memory.track(process);
      } catch (...) {
        resume_process(process);
        throw;
      }
      resume_process(process);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
  const auto first = std::find_if(running.begin(), running.end(), [](const ProcessRef& ref) { return !ref.zombie; });
  if (first == running.end()) throw_error(ErrorKind::kGone, "all processes have ended");
  if (!directories.empty()) directories.begin(writer, image_path, last_version, open_root_of(first->pid));
  memory.set_quiesce([this](const std::function<void()>& stopped) {
    const StoppedTree passing(processes(), {}, calls, true);
    stopped();
  });
  open_ipc(first->pid);
  std::vector<OpenedFile> files;
  for (KeptFiles::OpenFile& file : kept_files.take_large()) files.push_back({std::move(file.fd), std::move(file.path)});
  memory.set_open_files(std::move(files));
  memory.precopy(running, !options.soon ? MemoryCapture::kAllRounds : options.gate ? 1 : 0);
  // What has changed during the first, long one is read before the stop rather than in it.
  for (int times = 0; times < 2; ++times) directories.read();
}

// The namespace cannot change but by setns(2), which a process with rights would have to make: then the helper is of
// the new one.
void Session::Impl::open_ipc(pid_t process) {
  const std::string space = read_proc_link(process, "ns/ipc");
  if (ipc && space == ipc_space) return;
  ipc = broker().open_ipc(process);
  ipc_space = space;
  ipc_restored = is_of_restored_capsule(process, space);
  memory.set_ipc(ipc);
}

void Session::Impl::collect(StoppedTree& tree, pb::Capsule& capsule, const NetworkScope& network) {
  std::vector<StoppedProcess>& stopped = tree.processes();
  std::vector<ProcessRef> refs;
  for (const StoppedProcess& process : stopped) refs.push_back(process.ref);
  describe_tree(stopped, capsule);
  std::vector<pb::Process*> states;
  for (pb::Process& state : *capsule.mutable_processes()) states.push_back(&state);
  const auto first =
      std::find_if(stopped.begin(), stopped.end(), [](const auto& process) { return !process.ref.zombie; });
  if (first == stopped.end()) throw_error(ErrorKind::kGone, "all processes have ended");

  for (StoppedProcess& process : stopped)
    if (!process.ref.zombie && memory.needs_tracker(process.ref)) memory.track(process);
  open_ipc(first->ref.pid);
  ipc->capture(ipc->select(sysv_scope(stopped)), *capsule.mutable_sysv());
  capture_process_state(stopped, states);
  capture_filters(stopped, capsule);
  control_groups.capture(stopped, states, capsule);
  capture_files(
      stopped, states, outer(), [this](int fd, const std::string& target) { return memory.object_of_file(fd, target); },
      capsule, network, &kept_files);
  memory.collect(stopped, states, capsule);
  directories.read();
  capture_undo(stopped, states, capsule);
  describe_tasks(refs, capsule);
  if (config.describe) config.describe(capsule);
  for (const OuterStreamId& stream : config.outer) {
    pb::TaskStdio& stdio = *capsule.add_stdio();
    stdio.set_rank(stream.rank);
    stdio.set_fd(stream.fd);
    stdio.set_dev(stream.dev);
    stdio.set_ino(stream.ino);
  }
}

std::vector<OuterStreamId> Session::Impl::outer() const {
  std::vector<OuterStreamId> all = config.outer;
  if (!config.more_outer) return all;
  for (const OuterStreamId& stream : config.more_outer()) all.push_back(stream);
  return all;
}

void Session::Impl::describe_tasks(const std::vector<ProcessRef>& stopped, pb::Capsule& capsule) const {
  const std::map<int, int> ended = config.ended_tasks ? config.ended_tasks() : std::map<int, int>();
  bool any_lives = false;
  for (const TaskRoot& root : roots) {
    const auto ref = std::find_if(stopped.begin(), stopped.end(), [&](const auto& one) { return one.pid == root.pid; });
    if (ref == stopped.end() || ref->zombie) {
      // It is about to be said, and a version without the task could not be restarted.
      if (config.ended_tasks && !ended.contains(root.rank)) throw_error(ErrorKind::kBusy, "task {} ends", root.rank);
      if (ref == stopped.end()) continue;
    } else {
      any_lives = true;
    }
    pb::Task& task = *capsule.add_tasks();
    task.set_pid(static_cast<uint32_t>(ref->vpid));
    task.set_rank(root.rank);
    if (const auto cpus = config.task_cpus.find(root.rank); cpus != config.task_cpus.end())
      task.set_cpu_mask(cpus->second);
  }
  // Other processes of the step may live for a moment; nothing could be restarted of it.
  if (config.ended_tasks && !any_lives) throw_error(ErrorKind::kGone, "all tasks of the step have ended");
  capsule.set_suspended(config.may_be_suspended && all_tasks_stopped(capsule));
  for (const auto& [rank, status] : ended) {
    const auto has_rank = [rank = rank](const pb::Task& task) { return task.rank() == rank; };
    if (std::any_of(capsule.tasks().begin(), capsule.tasks().end(), has_rank)) continue;  // a zombie, say
    pb::TaskEnd& end = *capsule.add_ended();
    end.set_rank(rank);
    end.set_status(status);
  }
}

namespace {

// Memory for the arguments of calls, in each process, which goes whatever happens.
class ScratchMemory {
 public:
  explicit ScratchMemory(std::vector<StoppedProcess>& stopped) : stopped_(stopped) {
    constexpr size_t kBytes = 64 << 10;
    try {
      for (StoppedProcess& process : stopped_)
        if (process.remote) process.remote->map_scratch(kBytes);
    } catch (...) {
      unmap();
      throw;
    }
  }
  ~ScratchMemory() { unmap(); }
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;

 private:
  void unmap() noexcept {
    for (StoppedProcess& process : stopped_) {
      try {
        if (process.remote) process.remote->unmap_scratch();
      } catch (const Error&) {
        // Killed this very moment, and its memory with it.
      }
    }
  }
  std::vector<StoppedProcess>& stopped_;
};

}  // namespace

void Session::Impl::capture_undo(std::vector<StoppedProcess>& stopped, const std::vector<pb::Process*>& states,
                                 const pb::Capsule& capsule) {
  if (capsule.sysv().semaphores_size() == 0) return;
  const ScratchMemory scratch(stopped);
  capture_sem_undo(stopped, states, capsule.sysv());
}

CheckpointResult Session::Impl::checkpoint(const CheckpointOptions& options) {
  if (lazy) {
    lazy->wait();
    lazy.reset();
    untracked = true;
  }
  const uint64_t begin = now_ns(CLOCK_MONOTONIC);
  NetworkScope network = config.network;
  if (options.inside_job) network.inside_job = options.inside_job;
  Findings findings = check_now(processes(), outer(), network, &memory, &kept_files);
  for (int tries = 1; !findings.empty() && tries < kTransientTries; ++tries) {
    // Something may look unsupported only because its process is ending: a second and third look tell.
    const bool lasting =
        std::any_of(findings.begin(), findings.end(), [](const Finding& finding) { return !finding.transient; });
    if (lasting && tries > kLastingTries) break;
    std::this_thread::sleep_for(kTransientWait);
    findings = check_now(processes(), outer(), network, &memory, &kept_files);
  }
  if (!findings.empty()) throw_refused(findings);

  const std::string& path = options.image_path.empty() ? config.image_path : options.image_path;
  ImageDir image = claim(path);
  for (int tries = 1;; ++tries) {
    VersionWriter writer = image.begin_version(options.version);
    writer.set_compression(config.compression);
    follow_chain(image);
    if (untracked && last_version != 0) memory.inherit(image.open_version(last_version));
    untracked = false;
    if (tries == 1) resume_kept(image);
    try {
      return write_version(writer, begin, options, network);
    } catch (const Error& error) {
      memory.abandon();
      directories.abandon();
      // A process that ended in the middle: the others are looked at afresh.
      const bool transient = error.kind() == ErrorKind::kGone || error.kind() == ErrorKind::kBusy;
      // The other capsules of a job would have to try again, too: that is their caller's.
      if (!transient || options.gate || network.inside_job || tries == kTransientTries || !alive()) throw;
    } catch (...) {
      memory.abandon();
      directories.abandon();
      throw;
    }
    std::this_thread::sleep_for(kTransientWait);
  }
}

ImageDir Session::Impl::claim(const std::string& path) {
  ImageDir image = ImageDir::create(path, config.identity, config.node);
  if (UniqueFd& held = claims[path]; !held) held = image.claim();
  return image;
}

bool Session::Impl::alive() const {
  Tracee::let_go_late();
  const std::vector<ProcessRef> all = processes();
  // What the tasks of a step have left behind is no step.
  return std::any_of(all.begin(), all.end(), [this](const ProcessRef& ref) {
    return !ref.zombie && (!config.ended_tasks || is_root(ref.pid));
  });
}

CheckpointResult Session::Impl::write_version(VersionWriter& writer, uint64_t begin, const CheckpointOptions& options,
                                              NetworkScope network) {
  using Phase = CheckpointOptions::Phase;
  const auto pass = [&options](Phase phase) {
    if (options.gate) options.gate(phase);
  };
  prepare(writer, options);
  pass(Phase::kPrepared);
  pb::Capsule capsule;
  pb::Manifest manifest;
  const std::vector<ProcessRef> found = processes();
  const uint64_t stop_begin = now_ns(CLOCK_MONOTONIC);
  HeldConnections held;  // which are let go when the processes go on, or after them
  StoppedTree tree(
      found, [this] { return root_pids(); }, calls);
  pass(Phase::kStopped);
  manifest.set_taken_unix_ns(now_ns(CLOCK_REALTIME));
  manifest.set_taken_boot_ns(now_ns(CLOCK_MONOTONIC));
  if (options.kill) network.held = &held;
  collect(tree, capsule, network);
  pass(Phase::kCollected);
  if (!options.kill) tree.resume();
  const uint64_t stop_end = now_ns(CLOCK_MONOTONIC);

  const MemoryStats memory_stats = memory.write();
  directories.write();
  std::string state;
  if (!capsule.SerializeToString(&state)) throw_error(ErrorKind::kSystem, "the state of the processes is too large");
  writer.write_sealed("state.icp", state);

  CheckpointResult result;
  result.version = writer.version();
  result.taken_unix_ns = manifest.taken_unix_ns();
  manifest.set_version(writer.version());
  manifest.set_parent(memory_stats.full ? 0 : last_version);
  *manifest.mutable_host() = this_host();
  *manifest.mutable_job() = config.job;
  for (const std::string& node : options.nodes) manifest.mutable_job()->add_nodes(node);
  manifest.set_icp_release(ICP_VERSION);
  pb::VersionStats& stats = *manifest.mutable_stats();
  stats.set_pages_written(memory_stats.pages_written);
  stats.set_pages_total(memory_stats.pages_total);
  stats.set_stop_ns(stop_end - stop_begin);
  stats.set_processes(static_cast<uint32_t>(capsule.processes_size()));
  uint32_t threads = 0;
  for (const pb::Process& process : capsule.processes()) threads += static_cast<uint32_t>(process.threads_size());
  stats.set_threads(threads);
  if (memory_stats.shared) manifest.set_format(kSharedPagesFormat);
  stats.set_tracker(memory_stats.tracker);
  stats.set_full(memory_stats.full);
  stats.set_bytes_written(writer.bytes_written());
  stats.set_total_ns(now_ns(CLOCK_MONOTONIC) - begin);
  writer.finish(manifest);
  pass(Phase::kWritten);
  writer.publish();
  last_version = result.version;
  last_image = options.image_path.empty() ? config.image_path : options.image_path;
  memory.saved_as(manifest);
  stats.set_total_ns(now_ns(CLOCK_MONOTONIC) - begin);
  result.stats = stats;
  if (options.committed) options.committed(result);
  if (options.kill) held.outlive();
  if (options.kill) tree.kill();
  return result;
}

Session::Session(SessionConfig config, std::vector<TaskRoot> roots)
    : impl_(std::make_unique<Impl>(std::move(config), std::move(roots))) {
  // The tasks of a step are where Slurm has put them.
  for (const TaskRoot& root : impl_->roots)
    if (impl_->config.may_be_suspended) impl_->control_groups.add_base(groups_of(root.pid));
}
Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session::~Session() = default;

Findings Session::check() const { return check_now(impl_->processes(), impl_->outer(), impl_->config.network); }

CheckpointResult Session::checkpoint(const CheckpointOptions& options) { return impl_->checkpoint(options); }

CheckpointResult Session::checkpoint(bool kill) {
  CheckpointOptions options;
  options.kill = kill;
  return checkpoint(options);
}

void Session::claim() { impl_->claim(impl_->config.image_path); }

bool Session::alive() const { return impl_->alive(); }

std::vector<TaskRoot> Session::roots() const { return impl_->roots; }

void Session::kill() {
  for (const ProcessRef& ref : impl_->processes())
    if (!ref.zombie) signal_process(ref.pid, ref.start_time, SIGKILL);
}

Findings check_tree(const std::vector<pid_t>& roots, const std::vector<OuterStreamId>& outer) {
  for (const pid_t root : roots) ProcStat::read(root);  // a wrong pid is an error, not a clean answer
  return check_now(find_processes(roots), outer);
}

std::vector<OuterStreamId> outer_streams_of(pid_t root, int rank, bool include_regular) {
  std::vector<OuterStreamId> streams;
  for (int fd = 0; fd <= 2; ++fd) {
    struct stat status {};
    if (::stat(fmt::format("/proc/{}/fd/{}", root, fd).c_str(), &status) != 0) continue;
    const bool terminal =
        S_ISCHR(status.st_mode) && (::major(status.st_rdev) == 4 || ::major(status.st_rdev) == 5 ||
                                    (::major(status.st_rdev) >= 136 && ::major(status.st_rdev) <= 143));
    const bool stream = S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode) || terminal;
    // A file that the user may not open could not be opened again: "sudo icp run --user U CMD > log".
    const bool others = S_ISREG(status.st_mode) &&
                        ::faccessat(AT_FDCWD, fmt::format("/proc/{}/fd/{}", root, fd).c_str(), fd == 0 ? R_OK : W_OK,
                                    AT_EACCESS) != 0 &&
                        errno == EACCES;
    if (!stream && !others && !(include_regular && S_ISREG(status.st_mode))) continue;
    streams.push_back({rank, fd, status.st_dev, status.st_ino, include_regular || others});
  }
  return streams;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "engine/base/error.h"
#include "engine/base/process_signal.h"
#include "engine/base/procfs.h"
#include "engine/broker/broker.h"
#include "engine/files/file_table.h"
#include "engine/files/pty_restore.h"
#include "engine/memory/host_facts.h"
#include "engine/memory/lazy_fill.h"
#include "engine/memory/memory_restore.h"
#include "engine/process/control_groups.h"
#include "engine/process/scheduling.h"
#include "engine/restore/map_paths.h"
#include "engine/restore/process_restore.h"
#include "engine/restore/terminal_restore.h"
#include "engine/restore/tree_builder.h"
#include "engine/session.h"
#include "engine/session_impl.h"
#include "engine/sysv/sysv_ipc.h"

namespace icp {
namespace {

constexpr int kFirstSocketNumber = 16;  // lowest place of the socket that carries descriptors into processes

void check_host(const pb::Manifest& manifest) {
  const pb::HostFacts here = this_host();
  const pb::HostFacts& there = manifest.host();
  if (there.machine() != here.machine() || there.page_size() != here.page_size())
    throw_error(ErrorKind::kImage, "the image was taken on a {} host with pages of {} bytes, this is a {} one with {}",
                there.machine(), there.page_size(), here.machine(), here.page_size());
  if (const uint64_t missing = there.xfeatures() & ~here.xfeatures(); missing != 0)
    throw Error(
        ErrorKind::kImage,
        fmt::format("the image was taken on a processor with register sets that this one lacks (xfeatures {:#x})",
                    missing),
        0, "restart on a node with the same kind of processor");
}

int socket_number(const pb::Capsule& capsule) {
  int highest = kFirstSocketNumber;
  for (const pb::Process& process : capsule.processes())
    for (const pb::FileDescriptor& fd : process.fds()) highest = std::max(highest, fd.fd());
  if (highest > 1 << 20) throw_error(ErrorKind::kImage, "a descriptor is numbered {}", highest);
  return highest + 1;
}

// Streams for every task of the image; /dev/null where the caller has none.
std::map<int, std::array<int, 3>> complete_streams(const RestoreOptions& options, const pb::Capsule& capsule,
                                                   int null_fd) {
  std::map<int, std::array<int, 3>> streams = options.streams;
  for (const pb::TaskStdio& stdio : capsule.stdio())
    streams.try_emplace(stdio.rank(), std::array{null_fd, null_fd, null_fd});
  return streams;
}

// Before they have memory, which is charged to where a process is when it gets it.
void put_in_places(const pb::Capsule& capsule, const RestoreOptions& options, TreeBuilder& builder,
                   ControlGroupRestore& groups) {
  const auto has_place = [&options](int rank) { return options.task_places.contains(rank); };
  for (const auto& [pid, rank] : ranks_of(capsule, has_place))
    if (builder.process_of(pid) != nullptr) broker().join(builder.seed(pid).pid, options.task_places.at(rank));
  for (const pb::Process& process : capsule.processes())
    if (builder.process_of(process.pid()) != nullptr) groups.place(process, builder.seed(process.pid()).pid);
}

// Until they are let go for good: a tracer that lets go of a process would let it run. To be destroyed before them.
class KilledUnlessKept {
 public:
  explicit KilledUnlessKept(std::vector<std::unique_ptr<ProcessRestore>>& processes) : processes_(processes) {}
  ~KilledUnlessKept() {
    if (kept_) return;
    for (const auto& process : processes_) ::kill(process->stopped().ref.pid, SIGKILL);
    for (const auto& process : processes_) {
      // The leader's end is reported only when all other threads have been waited for.
      auto& threads = process->stopped().threads;
      for (auto thread = threads.rbegin(); thread != threads.rend(); ++thread) thread->forget_ended();
    }
  }
  KilledUnlessKept(const KilledUnlessKept&) = delete;
  KilledUnlessKept& operator=(const KilledUnlessKept&) = delete;
  void keep() { kept_ = true; }

 private:
  std::vector<std::unique_ptr<ProcessRestore>>& processes_;
  bool kept_ = false;
};

}  // namespace

struct RestoredCapsule::Impl {
  pb::Manifest manifest;
  pid_t init_pid = 0;
  uint64_t init_start = 0;
  bool detached = false;
  UniqueFd channel;
  std::string unread;               // an incomplete report of init
  std::map<uint32_t, int> rank_of;  // by pid in the capsule
  std::vector<TaskRoot> roots;
  std::vector<TaskExit> ended;
  std::vector<OuterStreamId> outer;
  std::unique_ptr<MemoryCapture> memory;
  std::shared_ptr<LazyFill> lazy;
  std::vector<GroupPaths> places;  // control groups of the job

  static void close_all(std::vector<std::unique_ptr<ProcessRestore>>& processes, bool stops);
  void finish_all(std::vector<std::unique_ptr<ProcessRestore>>& processes, TreeBuilder& builder);
  void note_tasks(const pb::Capsule& capsule, std::vector<std::unique_ptr<ProcessRestore>>& processes);
  void note_streams(const std::map<int, std::array<int, 3>>& streams, const RestoreOptions& options);
  void build(const RestoreOptions& options, const VersionReader& version, const pb::Capsule& capsule);
  ~Impl();
};

RestoredCapsule::Impl::~Impl() {
  if (init_pid == 0 || detached) return;
  ::kill(init_pid, SIGKILL);
  int status = 0;
  while (::waitpid(init_pid, &status, 0) < 0 && errno == EINTR) {
  }
}

void RestoredCapsule::Impl::note_tasks(const pb::Capsule& capsule,
                                       std::vector<std::unique_ptr<ProcessRestore>>& processes) {
  for (const pb::Task& task : capsule.tasks()) {
    rank_of[task.pid()] = task.rank();
    for (const auto& process : processes)
      if (static_cast<uint32_t>(process->stopped().ref.vpid) == task.pid())
        roots.push_back({process->stopped().ref.pid, task.rank(), process->stopped().ref.start_time});
  }
  for (const pb::TaskEnd& end : capsule.ended()) ended.push_back({end.rank(), end.status()});
}

void RestoredCapsule::Impl::note_streams(const std::map<int, std::array<int, 3>>& streams,
                                         const RestoreOptions& options) {
  struct stat manager {};
  for (const auto& [rank, fd] : options.pmi)
    if (::fstat(fd, &manager) == 0) outer.push_back({rank, kPmiStream, manager.st_dev, manager.st_ino, false});
  if (options.pmix_relay >= 0 && ::fstat(options.pmix_relay, &manager) == 0)
    outer.push_back({options.pmi.empty() ? 0 : 1, kPmixRelayStream, manager.st_dev, manager.st_ino, false});
  for (const auto& [number, fd] : options.launched)
    if (::fstat(fd, &manager) == 0) outer.push_back({number, kLaunchStream, manager.st_dev, manager.st_ino, false});
  for (const auto& [rank, fds] : streams) {
    for (int fd = 0; fd <= 2; ++fd) {
      struct stat status {};
      if (::fstat(fds[static_cast<size_t>(fd)], &status) == 0 &&
          !(S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3)))
        outer.push_back({rank, fd, status.st_dev, status.st_ino, true});
    }
  }
}

void RestoredCapsule::Impl::build(const RestoreOptions& options, const VersionReader& version,
                                  const pb::Capsule& capsule) {
  const std::vector<TreeStep> steps = plan_tree(capsule);
  std::optional<ControlGroupRestore> groups;  // goes after the processes that are in them
  TreeBuilder builder(options.init_path.empty() ? default_init_program() : options.init_path, options.like,
                      options.identity, wants_own_ptys(capsule));
  places.push_back(groups_of(builder.init_pid()));
  for (const auto& [rank, place] : options.task_places) places.push_back(groups_of(place));
  groups.emplace(capsule, builder.init_pid(), options.dry);
  const std::shared_ptr<IpcAccess> ipc = broker().open_ipc(builder.init_pid());
  const UniqueFd root = builder.root();
  const UniqueFd null_fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const std::map<int, std::array<int, 3>> streams = complete_streams(options, capsule, null_fd.get());
  const RestoredSysv sysv = ipc->restore(capsule, options.identity.uid, options.identity.gid);
  const int carrier = socket_number(capsule);
  if (options.lazy) lazy = std::make_shared<LazyFill>(builder.init_pid());
  MemoryRestore memory_restore(version, capsule,
                               {.identity = options.identity,
                                .root_fd = root.get(),
                                .agent_socket = builder.agent_socket(),
                                .process_socket = carrier,
                                .seed_socket = builder.process_socket(),
                                .sysv = &sysv,
                                .ipc = ipc.get(),
                                .keep_changed = options.changed == ChangedFiles::kAccept,
                                .dry = options.dry,
                                .lazy = lazy.get()});
  std::set<InodeKey> remade;
  std::vector<int> in_use;
  for (const auto& [rank, fds] : options.streams) in_use.insert(in_use.end(), fds.begin(), fds.end());
  if (!options.dry)
    remade =
        put_back_directories(version, capsule, options.identity, root.get(), options.changed, in_use, options.path_map);
  memory_restore.check();
  memory_restore.create_objects();
  remade.merge(memory_restore.remade());
  std::optional<TerminalRestore> terminals;
  FileRestore files(
      capsule,
      {.identity = options.identity,
       .root_fd = root.get(),
       .changed = options.changed,
       .dry = options.dry,
       .taken_unix_ns = version.manifest().taken_unix_ns(),
       .outer = streams,
       .pmi = options.pmi,
       .pmix_relay = options.pmix_relay,
       .launched = options.launched,
       .open_object = [&](uint32_t object, uint32_t flags) { return memory_restore.open_object(object, flags); },
       .network = options.network,
       .remade = std::move(remade),
       .open_controlling = [&](const pb::OpenFile& file) { return terminals->open(file); },
       .process_of = [&](uint32_t pid) { return pid == 1 ? &builder.init() : builder.process_of(pid); }});
  files.create_terminals();
  terminals.emplace(capsule, builder, files, streams);
  memory_restore.plan_sharing(steps);
  builder.build(
      capsule, steps, [&](uint32_t pid, RemoteProcess& remote) { memory_restore.seed(pid, remote); },
      [&](uint32_t pid) { terminals->take(pid); });
  put_in_places(capsule, options, builder, *groups);
  memory_restore.end_seeding(builder.init());
  terminals->settle();
  files.create();
  builder.end_helpers(steps);  // while their parents, who wait for them, still run
  for (const pb::Process& process : capsule.processes()) {
    if (process.state() == pb::Process::ZOMBIE)
      builder.end_as_zombie(process.pid(), process.exit_status(), process.comm());
    else if (process.continue_untold())
      builder.continue_untold(process.pid());
  }

  const std::map<uint32_t, CpuBinding> bindings = bindings_of(capsule, options.task_cpus);
  const RestoreShared shared{capsule,
                             options.identity.uid == 0 && version.manifest().job().uid() == 0,
                             builder,
                             memory_restore,
                             files,
                             *groups,
                             sysv,
                             options.identity,
                             carrier,
                             bindings,
                             capsule.suspended(),
                             options.dry};
  std::vector<std::unique_ptr<ProcessRestore>> processes;
  KilledUnlessKept until_the_end(processes);
  for (const pb::Process& process : capsule.processes()) {
    if (process.state() == pb::Process::ZOMBIE) continue;
    processes.push_back(std::make_unique<ProcessRestore>(shared, process));
    processes.back()->map_memory();
  }
  memory_restore.fill_pages();
  for (auto& process : processes) process->finish_memory();  // through a socket that build() closes
  for (auto& process : processes) process->build();
  files.deliver();
  ipc->finish(capsule, sysv);
  if (options.track && options.lazy) {
    // A mapping has one userfaultfd: tracking begins when the pages are there. See MemoryCapture::inherit().
    memory = std::make_unique<MemoryCapture>(MemoryOptions{
        .tracker = options.tracker, .staging_limit = 1ull << 30, .precopy_rounds = 3, .dedup = false, .root = {}});
  } else if (options.track) {
    std::vector<StoppedProcess> stopped;
    for (auto& process : processes) stopped.push_back(std::move(process->stopped()));
    memory = std::make_unique<MemoryCapture>(MemoryOptions{
        .tracker = options.tracker, .staging_limit = 1ull << 30, .precopy_rounds = 3, .dedup = false, .root = {}});
    memory->set_ipc(ipc);
    memory->adopt(version, capsule, stopped);
    for (size_t i = 0; i < processes.size(); ++i) processes[i]->stopped() = std::move(stopped[i]);
  }
  for (auto& process : processes) process->drop_rights();
  for (auto& process : processes) process->finish();
  close_all(processes, !shared.go_on && !options.dry);  // in which one may run into its stop
  note_tasks(capsule, processes);
  note_streams(streams, options);
  files.meet();
  if (options.dry) return;  // the builder takes all of it with it
  // From here on the outside changes; what could fail has been tried.
  files.apply_side_effects();
  memory_restore.apply_side_effects();
  until_the_end.keep();
  groups->keep();
  finish_all(processes, builder);
}

// Children first: one that is stopped stops while calls can still be made in its parent. Not `stops`: those go on, too.
void RestoredCapsule::Impl::close_all(std::vector<std::unique_ptr<ProcessRestore>>& processes, bool stops) {
  std::map<uint32_t, ProcessRestore*> by_pid;
  for (auto& process : processes) by_pid[process->state().pid()] = process.get();
  for (auto process = processes.rbegin(); process != processes.rend(); ++process) {
    (*process)->close();
    (*process)->set_registers();
    const pb::Process& state = (*process)->state();
    const auto parent = by_pid.find(state.ppid());
    const bool told = stops && state.state() == pb::Process::STOPPED && state.stop_told();
    if (told && parent != by_pid.end()) parent->second->take_stop_of(**process);
  }
}

void RestoredCapsule::Impl::finish_all(std::vector<std::unique_ptr<ProcessRestore>>& processes, TreeBuilder& builder) {
  init_pid = builder.init_pid();
  init_start = ProcStat::read(init_pid).start_time_ticks;
  channel = builder.release();
  for (auto& process : processes) process->run();
  for (auto& process : processes) process->tell_size();
}

RestoredCapsule RestoredCapsule::restore(const RestoreOptions& options) {
  const ImageDir image = ImageDir::open(options.image_path, options.identity, options.node);
  const uint32_t number = options.version != 0 ? options.version : image.latest().value_or(0);
  if (number == 0) throw_error(ErrorKind::kImage, "{} holds no committed version", options.image_path);
  const VersionReader version = image.open_version(number);
  pb::Capsule capsule = version.read_state();
  map_paths(capsule, options.path_map);
  check_host(version.manifest());
  if (options.lazy && !lazy_fill_available()) {
    throw Error(ErrorKind::kRefused, "this kernel does not let memory be restored lazily", 0, "restart without --lazy");
  }
  auto impl = std::make_unique<Impl>();
  impl->manifest = version.manifest();
  impl->build(options, version, capsule);
  return RestoredCapsule(std::move(impl));
}

void RestoredCapsule::rehearse(const RestoreOptions& options) {
  RestoreOptions dry = options;
  dry.dry = true;
  dry.track = dry.lazy = false;
  dry.streams.clear();  // a session that ends takes its terminal with it
  dry.pmi.clear();
  restore(dry);
}

RestoredCapsule::RestoredCapsule(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RestoredCapsule::RestoredCapsule(RestoredCapsule&&) noexcept = default;
RestoredCapsule::~RestoredCapsule() = default;

uint32_t RestoredCapsule::version() const { return impl_->manifest.version(); }
const pb::Manifest& RestoredCapsule::manifest() const { return impl_->manifest; }
pid_t RestoredCapsule::init_pid() const { return impl_->init_pid; }
std::vector<TaskRoot> RestoredCapsule::roots() const { return impl_->roots; }
std::vector<TaskExit> RestoredCapsule::ended() const { return impl_->ended; }
int RestoredCapsule::event_fd() const { return impl_->channel.get(); }

std::vector<TaskExit> RestoredCapsule::take_exits() {
  char buffer[4096];
  ssize_t got = 0;
  while ((got = ::recv(impl_->channel.get(), buffer, sizeof buffer, MSG_DONTWAIT)) > 0)
    impl_->unread.append(buffer, static_cast<size_t>(got));
  std::vector<TaskExit> exits;
  for (size_t end = 0; (end = impl_->unread.find('\n')) != std::string::npos;) {
    unsigned pid = 0;
    int status = 0;
    const std::string line = impl_->unread.substr(0, end);
    impl_->unread.erase(0, end + 1);
    if (std::sscanf(line.c_str(), "X %u %d", &pid, &status) != 2) continue;
    const auto rank = impl_->rank_of.find(pid);
    if (rank != impl_->rank_of.end()) exits.push_back({rank->second, status});
  }
  return exits;
}

void RestoredCapsule::wait_for_memory() {
  if (impl_->lazy) impl_->lazy->wait();
}

void RestoredCapsule::kill() {
  if (impl_->init_pid != 0) ::kill(impl_->init_pid, SIGKILL);
}

void RestoredCapsule::detach() {
  wait_for_memory();
  impl_->lazy.reset();
  // Init dies with the agent's thread unless told otherwise, which only it can do for itself.
  InterruptedCalls calls;
  StoppedProcess init = stop_process({impl_->init_pid, 1, impl_->init_start, "icp-init", false}, calls);
  init.remote->call("prctl(PR_SET_PDEATHSIG)", SYS_prctl, {PR_SET_PDEATHSIG, 0});
  resume_process(init);
  impl_->detached = true;
}

void RestoredCapsule::signal_all(int signal) {
  for (const pid_t child : read_children(impl_->init_pid))
    for (const ProcessRef& process : find_processes({child})) signal_process(process.pid, process.start_time, signal);
}

Session RestoredCapsule::continue_session(SessionConfig config) {
  if (!impl_->memory) throw_error(ErrorKind::kUsage, "the restored tree is not tracked");
  if (config.outer.empty()) config.outer = impl_->outer;
  if (!config.more_processes) config.more_processes = [init = impl_->init_pid] { return read_children(init); };
  config.whole_ipc_namespace = true;
  auto session = std::make_unique<Session::Impl>(std::move(config), impl_->roots);
  session->memory = std::move(*impl_->memory);
  session->last_version = version();
  session->last_image = session->config.image_path;
  session->lazy = impl_->lazy;
  for (GroupPaths& place : impl_->places) session->control_groups.add_base(std::move(place));
  impl_->memory.reset();
  return Session(std::move(session));
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// icpstepd for one step on one node, from slurmstepd's hello to its goodbye.
//
//   fresh    tasks announce themselves, are told to run, exec; then a version each interval
//   restart  tasks announce themselves, become proxies, lend their streams; the capsule is restored; exit statuses
//            and signals pass through the proxies; then versions as above. When the tasks of this node are those of
//            several capsules, an agent for each does that (capsule_agents.h)
//
// Everything in one thread: ptrace belongs to a thread. A version is a synchronous call, during which messages wait.
#pragma once

#include <array>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "coordinator/config.h"
#include "coordinator/icpstepd/activity.h"
#include "coordinator/icpstepd/capsule_agents.h"
#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/coordinator_link.h"
#include "coordinator/icpstepd/image_choice.h"
#include "coordinator/icpstepd/ipc_report.h"
#include "coordinator/icpstepd/launched_steps.h"
#include "coordinator/icpstepd/notices.h"
#include "coordinator/icpstepd/pmix_link.h"
#include "coordinator/icpstepd/restart.h"
#include "coordinator/icpstepd/versions.h"
#include "coordinator/icpstepd/watched_socket.h"
#include "coordinator/protocol/asio.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/error.h"
#include "engine/base/unique_fd.h"

namespace icp {

class StepAgent {
 public:
  // `control` and `tasks` are the sockets of slurmstepd, `problem`: why this
  // step gets no checkpoints (a wrong configuration); the tasks are told so.
  StepAgent(protocol::StepFacts facts, Config config, std::string problem, UniqueFd control, UniqueFd tasks);
  ~StepAgent();
  // Until slurmstepd says goodbye or is gone.
  void run();

 private:
  struct Task {
    enum State { kForked, kStarting, kRunning, kProxy, kEnded };
    State state = kForked;
    int rank = 0;
    pid_t pid = 0;    // as slurmstepd says
    pid_t child = 0;  // of a guard: the program
    pid_t root() const { return child != 0 ? child : pid; }
    std::array<StreamId, 3> streams;
    StreamId pmi;
    std::string cpus;  // a cpu_set_t, as the task was started with
    std::unique_ptr<Socket> socket;
    ProxyStreams lent;
    bool lent_all = false;
    std::optional<int> status;  // as slurmstepd says, when it has ended
  };

  void on_control();
  void slurmstepd_said(const protocol::Packet& packet);
  bool hear_slurmstepd();
  // Waits until slurmstepd has named that many tasks.
  void take_names(size_t tasks);
  void on_ready();
  void on_task_socket(Task& task);
  void on_guard(Task& task, const protocol::Packet& packet);
  bool wants_guards() const;
  bool is_guard(pid_t pid) const;
  // Of guards and proxies: a version, then the task gets it.
  void on_signal(Task& task, int signal);
  bool is_moment(int signal) const;
  bool is_answered(int signal) const;
  void version_before(int signal);
  bool ask_for_version_before(int signal, uint64_t after_round);
  void version_before_is_over(const std::string& image, const net::BeginRound& begin);
  void let_through(int signal);
  void let_all_through();
  void taken_for_signal(int signal, const std::string& image);
  void say_taken(int signal);
  void mark_end(bool all_well);
  std::optional<Hold> hold_for_end(std::function<bool()> stays);
  void taken_for_end(const std::string& image);
  void hold_is_over();
  void tell_held();
  void tell_version();
  void hand_on(const Task& task, int signal);
  void on_proxy(Task& task, protocol::Packet& packet);
  void pass_signal(const Task& task, int signal) const;
  void on_proxy_gone(Task& task);
  void on_capsule();
  void on_timer();
  void on_watch_timer();
  void on_hang_timer();
  bool is_active();
  void tell_idle(std::chrono::milliseconds idle);
  std::vector<ProcessRef> all_processes() const;
  template <typename Take>
  auto take_apart(const Take& take);
  bool take_version(Hold* hold);
  std::string take_version(const net::BeginRound& begin, Hold* hold);
  void watch_ipc(const std::vector<pid_t>& tasks);
  void charge(pid_t task);

  void answer(Task& task);
  void decide(const std::string& cwd);
  void choose_capsules();
  void refuse_restart(Error error);
  void fail_task(Task& task, const std::string& text);
  bool tell_the_others(const std::string& error);
  void tell_coordinator_of_failure(const std::string& error);
  void give_up_restart(const Error& error);
  void begin_versions_when_all_run();
  void restore_when_all_lent();
  void after_restore(RestartResult result);
  void serve_pmix(const net::RestartReady& ready);
  void start_versions(Session session);
  void start_link();
  net::AgentHello hello() const;
  pid_t some_process() const;
  // With a coordinator that says nothing, until the user hears of it.
  static constexpr std::chrono::seconds kPatience{3};
  RestartTogether with_the_others();
  void find_sockets(SessionConfig& config);
  void on_link_changed(const std::string& why);
  void tell_absence(const std::string& why);
  void start_timer();
  void wait_until(std::chrono::steady_clock::time_point when);
  void end_task(Task& task, int status);
  void finish(bool goodbye);
  Task* find(int64_t rank);
  std::vector<TaskStreams> task_streams() const;
  std::vector<pid_t> orphans() const;
  std::map<int, int> ended_tasks();
  bool several_capsules() const { return facts_.capsules > 1 || facts_.launched != 0 || launched_.any(); }
  bool may_launch() const;
  void begin_launching(protocol::Packet& answer);
  void keep_versions_of_all(size_t own);
  bool asked() const {
    return !facts_.interval.empty() || !facts_.restart_dir.empty() || !facts_.checkpoint_on.empty();
  }
  std::string step() const;
  void tell_user(const std::string& line);
  void tell_script(const std::string& line);
  void look_after_script();

  protocol::StepFacts facts_;
  Config config_;
  std::string problem_;
  boost::asio::io_context io_{1};
  Socket control_, ready_;
  boost::asio::steady_timer timer_, watch_timer_, last_timer_, hang_timer_;
  boost::asio::signal_set signals_;
  std::map<int, Task> tasks_;  // by rank
  Notices notices_;
  Versions versions_;
  PmixLink pmix_;
  LaunchedSteps launched_;
  std::optional<StartPlan> plan_;
  std::string image_;                              // the step's own
  std::unique_ptr<CapsuleAgents> capsule_agents_;  // they do everything else then
  std::optional<Error> refused_;                   // why the step cannot be restored here
  std::optional<RestoredCapsule> capsule_;
  uint32_t capsules_to_restore_ = 0;  // of the version, with those of launched steps
  uint32_t restart_attempt_ = 0;      // of a restart with other capsules, which one it was that succeeded
  std::unique_ptr<Socket> capsule_events_;
  Signalled signalled_ = Signalled::kTask;
  std::chrono::milliseconds interval_{0};
  std::string moments_;                        // see checkpoint_moments.h
  std::chrono::steady_clock::time_point due_;  // the next version
  std::unique_ptr<CoordinatorLink> link_;      // none without a coordinator
  std::chrono::steady_clock::time_point link_since_;
  int without_steps_ = 0;                      // how often no srun of the batch script was found
  bool terminated_ = false;                    // by Slurm, and a version taken of that moment
  bool held_ = false;                          // since then
  bool vacated_ = false;                       // ended by icpctld with a version
  std::map<int, std::set<int>> signal_waits_;  // by signal: tasks for which it waits for a version of all nodes
  int signal_tries_ = 0;                       // for that version
  std::map<int, std::chrono::steady_clock::time_point> answered_;  // signals, when a version was taken for them
  Activity activity_;
  std::chrono::steady_clock::time_point active_at_;  // when it was seen last
  bool idle_told_ = false;                           // since then
  bool charged_ = false;                             // the agent's memory, to the step
  bool absence_told_ = false;                        // of the coordinator, to the user
  std::optional<IpcReport> ipc_report_;              // none without one, or if objects are not the job's alone
};

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// What commands ask of icpctld: who may ask, of what, and what comes of it. docs/man/scontrol-checkpoint.1 and facts of
// Slurm 18.08 say what the codes mean.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/icpctld/catalog.h"
#include "coordinator/icpctld/fair_queue.h"
#include "coordinator/icpctld/slurm_jobs.h"
#include "coordinator/icpctld/steps.h"
#include "coordinator/protocol/asio.h"
#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

// One thread; libslurm is called, and what may be much is looked up, in threads of their own, which each user has in
// turn. Users other than root may ask so often (UserBudget).
class Requests {
 public:
  using Answer = std::function<void(const net::Reply&)>;

  // `self`: whom icpctld runs as, who may do everything, as root may.
  Requests(boost::asio::io_context& io, Steps& steps, Catalog& catalog, uid_t self);
  // Answers exactly once, now or later.
  void handle(uid_t caller, const net::Request& request, Answer answer);
  // As icpctld's own request.
  void handle_own(const net::Request& request, Answer answer) { handle(self_, request, std::move(answer)); }
  // Asks Slurm about a job in another thread; nothing when it could not be asked.
  void look(uint32_t job, std::function<void(std::optional<SlurmJob>)> told);
  // The same about all nodes; `told` is not called when it could not be asked.
  void look_at_nodes(std::function<void(const std::vector<SlurmNode>&)> told);
  // Runs a call of libslurm that changes the job in another thread; `then` is told its code in this one.
  void change_job(std::function<uint32_t()> work, std::function<void(uint32_t)> then);

 private:
  struct Asked {
    uid_t caller = 0;
    net::Request request;
    Answer answer;
    SlurmJob job;
    bool job_known = false;  // to Slurm
  };
  using Pointer = std::shared_ptr<Asked>;
  // What becomes of a job after its version.
  struct Ending {
    std::string why;  // for its history
    std::function<uint32_t(uint32_t job)> work;
    bool requeues = true;  // else it is cancelled
  };

  static net::Reply failure(uint32_t code, const std::string& text = {});
  Pointer own() const;
  void judge(const Pointer& asked, uint32_t code);
  void carry_out(const Pointer& asked);
  void create(const Pointer& asked, const std::optional<Ending>& ending);
  void move(const Pointer& asked);
  void drain(const Pointer& asked);
  void history(const Pointer& asked);
  void ended_because(const Asked& asked, const std::string& why);
  void change_disabled(const Pointer& asked, bool disable);
  void restart(const Pointer& asked);
  void restart_dir(const Pointer& asked);
  void able(const Pointer& asked);
  void last_error(const Pointer& asked);
  void status(const Pointer& asked);
  void add_live(net::StepStatus& status) const;
  void ipc(const Pointer& asked);
  bool may(uid_t caller, uid_t owner) const { return may_all(caller) || caller == owner; }
  std::optional<int32_t> step_of(const Asked& asked) const;
  void begin(const Pointer& asked);
  // libslurm's work, whose result is a code of Slurm's.
  void in_pool(const Pointer& asked, std::function<uint32_t()> work, std::function<void(uint32_t)> then);
  // What the catalog knows, looked up in a thread of its own, and then told.
  void from_catalog(const Pointer& asked, std::function<void(const Catalog&, net::Reply&)> look,
                    std::function<void(net::Reply&)> then);
  // Nobody: of whomever.
  std::optional<uid_t> only(uid_t caller) const { return may_all(caller) ? std::nullopt : std::optional(caller); }
  bool may_all(uid_t caller) const { return caller == 0 || caller == self_; }

  boost::asio::io_context& io_;
  Steps& steps_;
  Catalog& catalog_;
  const uid_t self_;
  const std::unique_ptr<const Catalog> reader_;
  UserBudget budget_;
  FairQueue slurm_, reading_;  // libslurm is asked one question at a time
};

}  // namespace icp

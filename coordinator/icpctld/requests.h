// SPDX-License-Identifier: GPL-2.0-or-later
// What commands ask of icpctld: who may ask, of what, and what comes of it. docs/man/scontrol-checkpoint.1 and facts of
// Slurm 18.08 say what the codes mean.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

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
  // The job's time limit is near: a version, after which it is requeued if it may be; the user is told. `again`, when a
  // version is under way.
  void at_time_limit(uint32_t job, bool requeue, std::function<void()> again);
  // Asks Slurm about a job in another thread; nothing when it could not be asked.
  void look(uint32_t job, std::function<void(std::optional<SlurmJob>)> told);

 private:
  struct Asked {
    uid_t caller = 0;
    net::Request request;
    Answer answer;
    SlurmJob job;
    bool job_known = false;  // to Slurm
  };
  using Pointer = std::shared_ptr<Asked>;

  void tell(uint32_t job, const std::function<std::string(const Step&)>& text) const;
  void judge(const Pointer& asked, uint32_t code);
  void carry_out(const Pointer& asked);
  void create(const Pointer& asked, bool kill, bool requeue);
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

// SPDX-License-Identifier: GPL-2.0-or-later
// What commands ask of icpctld: who may ask, of what, and what comes of it. docs/man/scontrol-checkpoint.1 and facts of
// Slurm 18.08 say what the codes mean.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>

#include "coordinator/icpctld/catalog.h"
#include "coordinator/icpctld/slurm_jobs.h"
#include "coordinator/icpctld/steps.h"
#include "coordinator/protocol/asio.h"
#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

// One thread; libslurm is called in a pool of its own.
class Requests {
 public:
  using Answer = std::function<void(const net::Reply&)>;

  // `self`: whom icpctld runs as, who may do everything, as root may.
  Requests(boost::asio::io_context& io, Steps& steps, Catalog& catalog, uid_t self);
  ~Requests();
  // Answers exactly once, now or later.
  void handle(uid_t caller, const net::Request& request, Answer answer);

 private:
  struct Asked {
    uid_t caller = 0;
    net::Request request;
    Answer answer;
    SlurmJob job;
    bool job_known = false;  // to Slurm
  };
  using Pointer = std::shared_ptr<Asked>;

  void judge(const Pointer& asked, uint32_t code);
  void carry_out(const Pointer& asked);
  void create(const Pointer& asked, bool kill, bool requeue);
  void change_disabled(const Pointer& asked, bool disable);
  void restart(const Pointer& asked);
  void restart_dir(const Pointer& asked);
  void able(const Pointer& asked);
  void last_error(const Pointer& asked);
  void status(const Pointer& asked);
  void ipc(const Pointer& asked);
  bool may(uid_t caller, uid_t owner) const { return caller == 0 || caller == self_ || caller == owner; }
  std::optional<int32_t> step_of(const Asked& asked) const;
  void in_pool(std::function<uint32_t()> work, std::function<void(uint32_t)> then);

  boost::asio::io_context& io_;
  Steps& steps_;
  Catalog& catalog_;
  const uid_t self_;
  boost::asio::thread_pool slurm_{1};  // libslurm is asked one question at a time
};

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/requests.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <set>

#include "engine/base/error.h"
#include "engine/base/times.h"

namespace icp {
namespace {

constexpr uint32_t kDefaultMaxWait = 10;  // seconds, as Slurm's
constexpr uint32_t kMostMaxWait = 7 * 24 * 3600;
constexpr size_t kLongestNodes = 3000, kLongestReason = 1000;

constexpr size_t kLongestDirectory = 3000;  // as the plugin takes it
constexpr const char* kWrongDirectory = "ImageDir wants an absolute path of at most 3000 bytes, without line breaks";

// Or empty: none was given.
bool is_directory_name(const std::string& text) {
  return text.empty() || (text[0] == '/' && text.size() <= kLongestDirectory &&
                          text.find_first_of(std::string_view("\0\n\r", 3)) == std::string::npos);
}

// What a list of nodes names, looked up in Slurm's thread.
struct NamedNodes {
  std::vector<std::string> names;
  std::string wrong;  // a sentence about the first that Slurm does not know; empty: it knows all

  uint32_t look_up(const std::string& list) {
    std::vector<SlurmNode> known;
    if (const uint32_t code = load_nodes(known); code != 0) return code;
    std::set<std::string> there;
    for (const SlurmNode& node : known) there.insert(node.name);
    names = names_of_nodes(list);
    if (names.empty()) wrong = fmt::format("\"{}\" is no list of nodes", list);
    for (const std::string& name : names)
      if (wrong.empty() && !there.contains(name)) wrong = fmt::format("there is no node {}", name);
    return 0;
  }
};

}  // namespace

Requests::Requests(boost::asio::io_context& io, Steps& steps, Catalog& catalog, uid_t self)
    : io_(io), steps_(steps), catalog_(catalog), self_(self), reader_(catalog.reader()), slurm_(io), reading_(io) {}

net::Reply Requests::failure(uint32_t code, const std::string& text) {
  net::Reply reply;
  reply.set_code(code);
  reply.set_text(text);
  return reply;
}

void Requests::in_pool(const Pointer& asked, std::function<uint32_t()> work, std::function<void(uint32_t)> then) {
  const auto code = std::make_shared<uint32_t>(0);
  slurm_.run(
      asked->caller, [code, work = std::move(work)] { *code = work(); },
      [asked, code, then = std::move(then)](const std::string& why) {
        if (!why.empty()) return asked->answer(failure(kCheckpointFailed, why));
        then(*code);
      });
}

std::optional<int32_t> Requests::step_of(const Asked& asked) const {
  return asked.request.has_step() ? std::optional(asked.request.step()) : std::nullopt;
}

void Requests::handle(uid_t caller, const net::Request& request, Answer answer) {
  const auto stamped = [answer = std::move(answer)](net::Reply reply) {
    reply.set_release(ICP_VERSION);
    reply.set_now_unix_ms(now_unix_ms());
    answer(reply);
  };
  const auto asked = std::make_shared<Asked>(Asked{caller, request, stamped, {}, false});
  if (may_all(caller)) return begin(asked);
  const auto wait = budget_.take(caller, UserBudget::Clock::now());
  if (!wait) return asked->answer(failure(kCheckpointFailed, "you ask too often: try again in a moment"));
  if (wait->count() == 0) return begin(asked);
  const auto timer = std::make_shared<boost::asio::steady_timer>(io_, *wait);
  timer->async_wait([this, asked, timer](boost::system::error_code error) {
    if (!error) begin(asked);
  });
}

void Requests::begin(const Pointer& asked) {
  const net::Request& request = asked->request;
  switch (request.operation()) {
    case net::OP_STATUS:
      return status(asked);
    case net::OP_IPC:
      return ipc(asked);
    case net::OP_RESTART_DIR:
      return restart_dir(asked);
    case net::OP_HISTORY:
      return history(asked);
    case net::OP_DRAIN:
      return drain(asked);
    case net::OP_ABLE:
    case net::OP_CREATE:
    case net::OP_DISABLE:
    case net::OP_ENABLE:
    case net::OP_ERROR:
    case net::OP_RESTART:
    case net::OP_REQUEUE:
    case net::OP_VACATE:
    case net::OP_MOVE:
      break;
    default:
      return asked->answer(failure(kNotSupported));
  }
  if (request.job() == 0) return asked->answer(failure(kInvalidJobId));
  // Who owns a job is Slurm's to say, never its agents'.
  in_pool(
      asked, [asked] { return load_job(asked->request.job(), asked->job); },
      [this, asked](uint32_t code) { judge(asked, code); });
}

void Requests::judge(const Pointer& asked, uint32_t code) {
  const net::Request& request = asked->request;
  asked->job_known = code == 0;
  uid_t owner = asked->job.uid;
  if (code != 0) {
    const auto steps = catalog_.steps(request.job(), 1);
    // Without slurmctld, and for jobs that it has forgotten, our own record holds: agents run as root, by MUNGE's word.
    if (steps.empty() || (!is_unreachable(code) && code != kInvalidJobId)) return asked->answer(failure(code));
    owner = steps[0].uid;
    if (!is_unreachable(code) && request.operation() != net::OP_ERROR) return asked->answer(failure(code));
  }
  if (!may(asked->caller, owner)) return asked->answer(failure(kAccessDenied));
  carry_out(asked);
}

void Requests::carry_out(const Pointer& asked) {
  switch (asked->request.operation()) {
    case net::OP_ERROR:
      return last_error(asked);
    case net::OP_RESTART:
      return restart(asked);
    default:
      break;
  }
  if (asked->job_known && asked->job.state == SlurmJob::kPending) return asked->answer(failure(kJobPending));
  if (asked->job_known && asked->job.state == SlurmJob::kFinished) return asked->answer(failure(kAlreadyDone));
  switch (asked->request.operation()) {
    case net::OP_ABLE:
      return able(asked);
    case net::OP_DISABLE:
      return change_disabled(asked, true);
    case net::OP_ENABLE:
      return change_disabled(asked, false);
    case net::OP_CREATE:
      return create(asked, {});
    case net::OP_VACATE:
      return create(asked, Ending{"vacated", cancel_job, false});
    case net::OP_MOVE:
      return move(asked);
    default: {
      const std::string why = may_all(asked->caller) ? asked->request.reason() : "";
      return create(asked, Ending{why.empty() ? "requeued on request" : why, requeue_job});
    }
  }
}

void Requests::change_disabled(const Pointer& asked, bool disable) {
  const uint32_t job = asked->request.job();
  const uint32_t count = catalog_.disabled(job, step_of(*asked));
  if (disable && count < UINT32_MAX) catalog_.set_disabled(job, step_of(*asked), count + 1);
  if (!disable && count > 0) catalog_.set_disabled(job, step_of(*asked), count - 1);
  asked->answer({});
}

// create, vacate, requeue: of one step, or of all that the job runs. With several, the first error is the answer, and
// the job is ended only after all of them are through.
void Requests::create(const Pointer& asked, const std::optional<Ending>& ending) {
  const net::Request& request = asked->request;
  if (ending && ending->requeues && (!asked->job_known || !asked->job.batch))
    return asked->answer(failure(kNotSupported));
  if (!is_directory_name(request.image_dir())) return asked->answer(failure(kNotSupported, kWrongDirectory));
  if (request.max_wait_s() > kMostMaxWait) return asked->answer(failure(kNotSupported, "MaxWait is too long"));
  const auto found = steps_.running(request.job(), step_of(*asked));
  std::vector<std::shared_ptr<Step>> chosen;
  for (const auto& step : found) {
    // A script that runs steps is not checkpointed, they are.
    const bool script = step->facts.key.step < 0;
    if (!script || found.size() == 1 || request.has_step()) chosen.push_back(step);
  }
  if (chosen.empty())
    return asked->answer(failure(kNotSupported, "no step of the job has an agent: it did not ask for checkpoints"));
  for (const auto& step : chosen) {
    if (step->round) return asked->answer(failure(kInProgress));
    if (steps_.is_disabled(*step)) return asked->answer(failure(kDisabled));
    if (!step->complete()) return asked->answer(failure(kCheckpointFailed, "not all agents of the step are connected"));
  }

  struct Together {
    size_t open = 0, at_kill = 0;
    uint32_t code = 0;
    std::string text;
    std::vector<std::function<void(const std::string&)>> go_on;
    bool ending = false;
  };
  const auto all = std::make_shared<Together>();
  all->open = chosen.size();
  const auto end_job = [this, asked, all, ending] {
    if (all->ending || all->go_on.size() < all->open) return;
    all->ending = true;
    const auto tell = [all](const std::string& why) {
      const auto waiting = std::move(all->go_on);
      all->go_on.clear();
      for (const auto& go : waiting) go(why);
    };
    if (all->code != 0) return tell("another step of the job could not be checkpointed");
    const uint32_t job = asked->request.job();
    in_pool(
        asked, [job, ending] { return ending->work(job); },
        [this, asked, tell, ending](uint32_t code) {
          if (code == 0) ended_because(*asked, ending->why);
          tell(code == 0 ? std::string()
                         : fmt::format("slurmctld does not {} the job: {}", ending->requeues ? "requeue" : "cancel",
                                       slurm_text(code)));
        });
  };
  const uint32_t max_wait = request.max_wait_s() == 0 ? kDefaultMaxWait : request.max_wait_s();
  const bool wait = request.wait();
  for (const auto& step : chosen) {
    VersionRequest wanted;
    wanted.kill = ending.has_value();
    wanted.image_dir = request.image_dir();
    if (!wait || request.max_wait_s() != 0) wanted.max_wait = std::chrono::seconds(max_wait);
    wanted.finished = [asked, all, wait, end_job](uint32_t code, const std::string& text) {
      all->open--;
      if (code != 0 && all->code == 0) all->code = code, all->text = text;
      if (all->open > 0) return end_job();
      if (wait) asked->answer(failure(all->code, all->text));
    };
    if (ending) {
      wanted.before_kill = [all, end_job](std::function<void(const std::string&)> go_on) {
        all->go_on.push_back(std::move(go_on));
        end_job();
      };
    }
    if (const uint32_t code = steps_.create(step, wanted); code != 0) wanted.finished(code, {});
  }
  if (!wait) asked->answer(failure(all->code, all->text));
}

void Requests::ended_because(const Asked& asked, const std::string& why) {
  try {
    catalog_.run_ends_because({asked.job.id, asked.job.restarts}, why);
  } catch (const Error& error) {
    spdlog::error("{}", error.what());
  }
}

// As requeue, and somewhere else.
void Requests::move(const Pointer& asked) {
  const std::string nodes = asked->request.nodes();
  if (nodes.size() > kLongestNodes) return asked->answer(failure(kNotSupported, "the list of nodes is too long"));
  const std::string now = asked->job.nodes;
  const std::string why = may_all(asked->caller) ? asked->request.reason() : "";
  if (nodes.empty()) {
    const auto elsewhere = [now](uint32_t job) { return requeue_job_without(job, now); };
    return create(asked, Ending{why.empty() ? "moved away from " + now : why, elsewhere});
  }
  const auto named = std::make_shared<NamedNodes>();
  in_pool(
      asked, [nodes, named] { return named->look_up(nodes); },
      [this, asked, nodes, named](uint32_t code) {
        if (code != 0) return asked->answer(failure(code));
        if (!named->wrong.empty()) return asked->answer(failure(kNotSupported, named->wrong));
        const auto there = [nodes](uint32_t job) { return requeue_job_on(job, nodes); };
        create(asked, Ending{"moved to " + nodes, there});
      });
}

// Slurm's own right: that of its administrators, whom only root is known to be.
void Requests::drain(const Pointer& asked) {
  const std::string nodes = asked->request.nodes(), reason = asked->request.reason();
  if (!may_all(asked->caller)) return asked->answer(failure(kAccessDenied));
  if (nodes.empty() || nodes.size() > kLongestNodes || reason.empty() || reason.size() > kLongestReason)
    return asked->answer(failure(kNotSupported, "DRAIN wants nodes and a reason"));
  const auto named = std::make_shared<NamedNodes>();
  in_pool(
      asked,
      [nodes, reason, named]() -> uint32_t {
        if (const uint32_t code = named->look_up(nodes); code != 0) return code;
        return named->wrong.empty() ? drain_nodes(nodes, reason) : uint32_t{kCheckpointFailed};
      },
      [this, asked, named](uint32_t code) {
        net::Reply reply = failure(code, named->wrong);
        const std::set<std::string> drained(named->names.begin(), named->names.end());
        for (const auto& [key, step] : steps_.all()) {
          const bool there = std::any_of(step->hellos.begin(), step->hellos.end(),
                                         [&](const auto& entry) { return drained.contains(entry.second.host()); });
          if (code != 0 || !there) continue;
          net::StepStatus& status = *reply.add_steps();
          status.set_job(key.job);
          status.set_step(key.step);
          status.set_restarts(key.restarts);
          status.set_uid(step->facts.uid);
          status.set_image(step->facts.image);
          add_live(status);
        }
        asked->answer(reply);
      });
}

// A question of icpctld's own, that nobody waits for.
Requests::Pointer Requests::own() const {
  const auto asked = std::make_shared<Asked>();
  asked->caller = self_;
  asked->answer = [](const net::Reply&) {};
  return asked;
}

void Requests::look(uint32_t job, std::function<void(std::optional<SlurmJob>)> told) {
  const auto asked = own();
  asked->answer = [told](const net::Reply&) { told(std::nullopt); };
  in_pool(
      asked, [asked, job] { return load_job(job, asked->job); },
      [asked, told = std::move(told)](uint32_t code) { told(code == 0 ? std::optional(asked->job) : std::nullopt); });
}

void Requests::look_at_nodes(std::function<void(const std::vector<SlurmNode>&)> told) {
  const auto asked = own();
  const auto nodes = std::make_shared<std::vector<SlurmNode>>();
  in_pool(
      asked, [nodes] { return load_nodes(*nodes); },
      [nodes, told = std::move(told)](uint32_t code) {
        if (code == 0) told(*nodes);
      });
}

void Requests::change_job(std::function<uint32_t()> work, std::function<void(uint32_t)> then) {
  in_pool(own(), std::move(work), std::move(then));
}

// Slurm keeps a finished job's record for MinJobAge: requeueing it starts it again under its number, and the step finds
// its last version by itself, or asks for the directory that is remembered here.
void Requests::restart(const Pointer& asked) {
  const net::Request& request = asked->request;
  if (!asked->job_known) return asked->answer(failure(kInvalidJobId));
  if (asked->job.state != SlurmJob::kFinished || asked->job.completing) return asked->answer(failure(kJobNotFinished));
  if (!asked->job.batch) return asked->answer(failure(kNotSupported));
  if (!is_directory_name(request.image_dir())) return asked->answer(failure(kNotSupported, kWrongDirectory));
  try {
    catalog_.set_restart_dir(request.job(), asked->job.restarts + 1, request.image_dir());
  } catch (const Error& error) {
    return asked->answer(failure(kCheckpointFailed, error.what()));
  }
  const std::string nodes = request.stick_to_nodes() ? asked->job.nodes : "";
  in_pool(
      asked, [job = request.job(), nodes] { return nodes.empty() ? requeue_job(job) : requeue_job_on(job, nodes); },
      [asked](uint32_t code) { asked->answer(failure(code)); });
}

// What an agent asks of a job that was requeued: does somebody want it to go on from another directory than its own?
void Requests::restart_dir(const Pointer& asked) {
  // Agents ask, which have their users' rights.
  const bool own = !catalog_.steps(asked->request.job(), 1, asked->caller, std::nullopt).empty();
  if (asked->caller != 0 && asked->caller != self_ && !own) return asked->answer(failure(kAccessDenied));
  net::Reply reply;
  reply.set_text(catalog_.restart_dir(asked->request.job(), asked->request.restarts()));
  asked->answer(reply);
}

}  // namespace icp

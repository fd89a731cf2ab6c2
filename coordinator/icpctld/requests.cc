// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/requests.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <set>

#include "engine/base/error.h"

namespace icp {
namespace {

using std::chrono::milliseconds;

constexpr uint32_t kDefaultMaxWait = 10;  // seconds, as Slurm's
constexpr uint32_t kMostMaxWait = 7 * 24 * 3600;
constexpr size_t kMostSteps = 10'000, kMostVersions = 1000;
constexpr size_t kLongestNodes = 3000, kLongestReason = 1000;
constexpr size_t kMostOfReply = 2 << 20;  // bytes, about: a frame of so many takes some milliseconds

constexpr size_t kLongestDirectory = 3000;  // as the plugin takes it
constexpr const char* kWrongDirectory = "ImageDir wants an absolute path of at most 3000 bytes, without line breaks";

// Or empty: none was given.
bool is_directory_name(const std::string& text) {
  return text.empty() || (text[0] == '/' && text.size() <= kLongestDirectory &&
                          text.find_first_of(std::string_view("\0\n\r", 3)) == std::string::npos);
}

// A sentence about the first of the names that is none of Slurm's; empty: there is none.
std::string first_unknown(const std::vector<std::string>& names, const std::vector<SlurmNode>& known,
                          const std::string& list) {
  if (names.empty()) return fmt::format("\"{}\" is no list of nodes", list);
  std::set<std::string> there;
  for (const SlurmNode& node : known) there.insert(node.name);
  for (const std::string& name : names)
    if (!there.contains(name)) return fmt::format("there is no node {}", name);
  return "";
}

net::Reply failure(uint32_t code, const std::string& text = {}) {
  net::Reply reply;
  reply.set_code(code);
  reply.set_text(text);
  return reply;
}

uint64_t unix_ms(std::chrono::system_clock::time_point time) {
  return static_cast<uint64_t>(
      std::max<int64_t>(0, std::chrono::duration_cast<milliseconds>(time.time_since_epoch()).count()));
}

}  // namespace

Requests::Requests(boost::asio::io_context& io, Steps& steps, Catalog& catalog, uid_t self)
    : io_(io), steps_(steps), catalog_(catalog), self_(self), reader_(catalog.reader()), slurm_(io), reading_(io) {}

void Requests::in_pool(const Pointer& asked, std::function<uint32_t()> work, std::function<void(uint32_t)> then) {
  const auto code = std::make_shared<uint32_t>(0);
  slurm_.run(
      asked->caller, [code, work = std::move(work)] { *code = work(); },
      [asked, code, then = std::move(then)](const std::string& why) {
        if (!why.empty()) return asked->answer(failure(kCheckpointFailed, why));
        then(*code);
      });
}

void Requests::from_catalog(const Pointer& asked, std::function<void(const Catalog&, net::Reply&)> look,
                            std::function<void(net::Reply&)> then) {
  const auto reply = std::make_shared<net::Reply>();
  reading_.run(
      asked->caller, [this, reply, look = std::move(look)] { look(*reader_, *reply); },
      [asked, reply, then = std::move(then)](const std::string& why) {
        if (!why.empty()) return asked->answer(failure(kCheckpointFailed, why));
        then(*reply);
        asked->answer(*reply);
      });
}

std::optional<int32_t> Requests::step_of(const Asked& asked) const {
  return asked.request.has_step() ? std::optional(asked.request.step()) : std::nullopt;
}

void Requests::handle(uid_t caller, const net::Request& request, Answer answer) {
  const auto asked = std::make_shared<Asked>(Asked{caller, request, std::move(answer), {}, false});
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
      return create(asked, Ending{"vacated", cancel_job, "cancel"});
    case net::OP_MOVE:
      return move(asked);
    default: {
      const std::string why = may_all(asked->caller) ? asked->request.reason() : "";
      return create(asked, Ending{why.empty() ? "requeued on request" : why, requeue_job, "requeue"});
    }
  }
}

void Requests::able(const Pointer& asked) {
  net::Reply reply;
  const uint32_t job = asked->request.job();
  reply.set_disabled(catalog_.disabled(job, std::nullopt) > 0 ||
                     (asked->request.has_step() && catalog_.disabled(job, asked->request.step()) > 0));
  for (const auto& step : steps_.running(job, step_of(*asked))) {
    if (step->round) reply.set_began_unix(unix_ms(step->round_began) / 1000);
  }
  asked->answer(reply);
}

void Requests::change_disabled(const Pointer& asked, bool disable) {
  const uint32_t job = asked->request.job();
  const uint32_t count = catalog_.disabled(job, step_of(*asked));
  if (disable && count < UINT32_MAX) catalog_.set_disabled(job, step_of(*asked), count + 1);
  if (!disable && count > 0) catalog_.set_disabled(job, step_of(*asked), count - 1);
  asked->answer({});
}

void Requests::last_error(const Pointer& asked) {
  const std::optional<int32_t> step_number = step_of(*asked);
  from_catalog(
      asked,
      [job = asked->request.job(), step_number](const Catalog& catalog, net::Reply& reply) {
        // The newest run of the job; of several steps, one that went wrong tells more than one that did not.
        for (const StepFactsRecord& step : catalog.steps(job, kMostSteps, {}, step_number)) {
          if (reply.last_code() != 0) break;
          reply.set_last_code(step.last_code);
          reply.set_text(step.last_error);
        }
      },
      [](net::Reply&) {});
}

// create, vacate, requeue: of one step, or of all that the job runs. With several, the first error is the answer, and
// the job is ended only after all of them are through.
void Requests::create(const Pointer& asked, const std::optional<Ending>& ending) {
  const net::Request& request = asked->request;
  const bool requeue = ending && ending->verb != std::string_view("cancel");
  if (requeue && (!asked->job_known || !asked->job.batch)) return asked->answer(failure(kNotSupported));
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
                         : fmt::format("slurmctld does not {} the job: {}", ending->verb, slurm_text(code)));
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
  if (nodes.empty()) {
    const auto elsewhere = [now](uint32_t job) { return requeue_job_without(job, now); };
    return create(asked, Ending{"moved away from " + now, elsewhere, "requeue"});
  }
  const auto wrong = std::make_shared<std::string>();
  in_pool(
      asked,
      [nodes, wrong] {
        std::vector<SlurmNode> known;
        if (const uint32_t code = load_nodes(known); code != 0) return code;
        *wrong = first_unknown(names_of_nodes(nodes), known, nodes);
        return uint32_t{0};
      },
      [this, asked, nodes, wrong](uint32_t code) {
        if (code != 0) return asked->answer(failure(code));
        if (!wrong->empty()) return asked->answer(failure(kNotSupported, *wrong));
        const auto there = [nodes](uint32_t job) { return requeue_job_on(job, nodes); };
        create(asked, Ending{"moved to " + nodes, there, "requeue"});
      });
}

// Slurm's own right: that of its administrators, whom only root is known to be.
void Requests::drain(const Pointer& asked) {
  const std::string nodes = asked->request.nodes(), reason = asked->request.reason();
  if (!may_all(asked->caller)) return asked->answer(failure(kAccessDenied));
  if (nodes.empty() || nodes.size() > kLongestNodes || reason.empty() || reason.size() > kLongestReason)
    return asked->answer(failure(kNotSupported, "DRAIN wants nodes and a reason"));
  const auto names = std::make_shared<std::vector<std::string>>();
  const auto wrong = std::make_shared<std::string>();
  in_pool(
      asked,
      [nodes, reason, names, wrong]() -> uint32_t {
        *names = names_of_nodes(nodes);
        std::vector<SlurmNode> known;
        if (const uint32_t code = load_nodes(known); code != 0) return code;
        *wrong = first_unknown(*names, known, nodes);
        return wrong->empty() ? drain_nodes(nodes, reason) : uint32_t{kCheckpointFailed};
      },
      [this, asked, names, wrong](uint32_t code) {
        net::Reply reply = failure(code, *wrong);
        const std::set<std::string> drained(names->begin(), names->end());
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

void Requests::history(const Pointer& asked) {
  const auto owner = only(asked->caller);
  from_catalog(
      asked,
      [job = asked->request.job(), owner](const Catalog& catalog, net::Reply& reply) {
        for (net::RunRecord& run : catalog.runs(job, kMostRuns))
          if (!owner || run.uid() == *owner) *reply.add_runs() = std::move(run);
      },
      [](net::Reply& reply) {
        if (reply.runs_size() == 0) reply = failure(kInvalidJobId);
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

void Requests::change_job(uint32_t job, std::function<uint32_t()> work, std::function<void(uint32_t)> then) {
  spdlog::debug("job {} is changed", job);
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

namespace {

// What the catalog knows of steps: all but what is true at this moment only.
void look_up_steps(const Catalog& catalog, const net::Request& request, std::optional<uid_t> owner, net::Reply& reply) {
  size_t bytes = 0;
  const std::optional<int32_t> step = request.has_step() ? std::optional(request.step()) : std::nullopt;
  for (const StepFactsRecord& record : catalog.steps(request.job(), kMostSteps, owner, step)) {
    if (bytes > kMostOfReply) {
      reply.set_text("more is known than fits into one answer: ask for one job, or for fewer versions");
      break;
    }
    net::StepStatus& status = *reply.add_steps();
    status.set_job(record.key.job);
    status.set_step(record.key.step);
    status.set_restarts(record.key.restarts);
    status.set_uid(record.uid);
    status.set_image(record.image);
    status.set_nodes_expected(record.nodes);
    status.set_running(record.running);
    status.set_interval_ms(record.interval_ms);
    status.set_last_code(record.last_code);
    status.set_last_error(record.last_error);
    status.set_versions_total(record.versions);
    status.set_disabled(record.running && (catalog.disabled(record.key.job, std::nullopt) > 0 ||
                                           catalog.disabled(record.key.job, record.key.step) > 0));
    const size_t limit = std::min<size_t>(request.versions(), kMostVersions);
    if (limit > 0) {
      for (net::VersionRecord& version : catalog.versions(record.key, limit))
        *status.add_versions() = std::move(version);
    }
    bytes += status.ByteSizeLong();
  }
}

}  // namespace

void Requests::status(const Pointer& asked) {
  const auto owner = only(asked->caller);
  from_catalog(
      asked,
      [asked, owner](const Catalog& catalog, net::Reply& reply) {
        look_up_steps(catalog, asked->request, owner, reply);
      },
      [this, asked](net::Reply& reply) {
        for (net::StepStatus& status : *reply.mutable_steps()) add_live(status);
        if (asked->request.job() != 0 && reply.steps_size() == 0) reply = failure(kInvalidJobId);
      });
}

void Requests::add_live(net::StepStatus& status) const {
  const auto live = steps_.all().find(StepKey{status.job(), status.step(), status.restarts()});
  if (live == steps_.all().end()) return status.set_disabled(false);
  const Step& step = *live->second;
  for (const auto& [node, hello] : step.hellos) {
    status.add_nodes(node);
    status.add_hosts(hello.host());
  }
  if (status.interval_ms() > 0) status.set_next_unix_ms(unix_ms(step.next_due));
  if (step.round) {
    status.set_phase(step.round->phase());
    status.set_round_began_unix_ms(unix_ms(step.round_began));
  }
}

void Requests::ipc(const Pointer& asked) {
  net::Reply reply;
  size_t bytes = 0;  // it is put together in the thread of the rounds
  for (const auto& [key, step] : steps_.all()) {
    if ((asked->request.job() != 0 && key.job != asked->request.job()) || !may(asked->caller, step->facts.uid))
      continue;
    for (const auto& [node, objects] : step->ipc) {
      bytes += objects.ByteSizeLong();
      if (bytes > kMostOfReply) {
        reply.set_text("more is known than fits into one answer: ask for one job, or on the nodes");
        break;
      }
      net::NodeIpc& part = *reply.add_ipc();
      part.set_job(key.job);
      part.set_step(key.step);
      part.set_uid(step->facts.uid);
      part.set_node(node);
      *part.mutable_objects() = objects.objects();
    }
  }
  asked->answer(reply);
}

}  // namespace icp

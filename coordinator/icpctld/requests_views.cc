// SPDX-License-Identifier: GPL-2.0-or-later
// The requests that look and change nothing.
#include <algorithm>

#include "coordinator/icpctld/requests.h"

namespace icp {
namespace {

constexpr size_t kMostSteps = 10'000, kMostVersions = 1000;
constexpr size_t kMostOfReply = 2 << 20;  // bytes, about: a frame of so many takes some milliseconds

uint64_t unix_ms(std::chrono::system_clock::time_point time) {
  return static_cast<uint64_t>(
      std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count()));
}

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

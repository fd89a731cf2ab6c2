// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/job_operation.h"

#include <unistd.h>

#include <future>
#include <nlohmann/json.hpp>

#include "coordinator/icp/answer.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/report.h"
#include "coordinator/icp/step_json.h"
#include "coordinator/icp/step_text.h"
#include "coordinator/protocol/slurm_errors.h"

namespace icp {

namespace {

constexpr std::chrono::milliseconds kLook{300};

// What a user can do about a refusal.
std::string hint(uint32_t code, const std::string& job) {
  switch (code) {
    case net::kInProgress:
      return fmt::format("see icp status {}", job);
    case net::kDisabled:
      return fmt::format("icp enable {} allows it again", job);
    default:
      return "";
  }
}

// Where a round is, on standard error: one line that is drawn anew on a terminal, else (-v) one line for each change.
class Progress {
 public:
  explicit Progress(int verbosity) : terminal_(isatty(STDERR_FILENO) == 1), shown_(terminal_ || verbosity > 0) {}
  ~Progress() {
    if (terminal_ && !last_.empty()) fmt::print(stderr, "\r\033[K");
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Asks icpctld. A question that fails is no matter: the request itself will say what is wrong.
  void look(const JobClient& client, const net::Request& question) {
    if (!shown_) return;
    try {
      show(client.ask(question));
    } catch (const Error&) {
    }
  }

 private:
  void show(const net::Reply& reply) {
    std::string text;
    for (const net::StepStatus& step : reply.steps()) {
      if (step.phase() == net::NONE) continue;
      text +=
          fmt::format("{}{}: {}", text.empty() ? "" : ", ", job_step_text(step.job(), step.step()), phase_text(step));
    }
    if (text.empty() || text == last_) return;
    last_ = text;
    fmt::print(stderr, "{}icp: {}{}", terminal_ ? "\r\033[K" : "", printable(text), terminal_ ? "" : "\n");
    std::fflush(stderr);
  }

  bool terminal_, shown_;
  std::string last_;
};

net::Request question_about(const net::Request& request) {
  net::Request question;
  question.set_operation(net::OP_STATUS);
  question.set_job(request.job());
  question.set_has_step(request.has_step());
  question.set_step(request.step());
  question.set_versions(1);
  return question;
}

net::Reply ask_and_watch(const JobClient& client, const net::Request& request, int verbosity) {
  Progress progress(verbosity);
  auto answer = std::async(std::launch::async, [&] { return client.ask(request, kLongestWait); });
  while (answer.wait_for(kLook) == std::future_status::timeout) progress.look(client, question_about(request));
  return answer.get();
}

net::Request request_from(net::Operation operation, const JobOptions& options) {
  const JobId id = job_from(options.job);
  net::Request request = request_of(operation, id);
  if (!options.image_dir.empty()) request.set_image_dir(absolute_dir(options.image_dir));
  if (!options.max_wait.empty()) {
    const auto wait = interval_from(options.max_wait, "--max-wait");
    request.set_max_wait_s(static_cast<uint32_t>((wait.count() + 999) / 1000));
  }
  request.set_stick_to_nodes(options.stick_to_nodes);
  request.set_wait(options.wait);
  request.set_nodes(options.nodes);
  return request;
}

void print_versions(const net::Reply& reply, bool json) {
  if (json) return print_json({{"steps", steps_json(reply)}});
  for (const net::StepStatus& step : reply.steps())
    if (step.versions_size() > 0)
      fmt::print("{}: {}\n", job_step_text(step.job(), step.step()), printable(version_line(step.versions(0))));
}

}  // namespace

CLI::Option* JobOptions::add_job(CLI::App& app) {
  return app.add_option("JOB", job, "A job, or one step of it: 12, 12.0, 12.batch")->type_name("");
}

CLI::Option* JobOptions::add_config(CLI::App& app) {
  return app.add_option("--config", config, "icp.yaml to read (default: $ICP_CONFIG, /etc/slurm-icp/icp.yaml)")
      ->type_name("FILE");
}

CLI::Option* JobOptions::add_json(CLI::App& app) { return app.add_flag("--json", json, "Print JSON"); }

CLI::Option* JobOptions::add_image_dir(CLI::App& app) {
  return app.add_option("--image-dir", image_dir, "Directory of the versions (default: the job's own)")
      ->type_name("DIR");
}

JobId job_from(const std::string& text) {
  const auto id = parse_job_id(text);
  if (!id || id->job == 0)
    throw_error(ErrorKind::kUsage, "\"{}\" is neither JOB nor JOB.STEP, as in 12, 12.0 or 12.batch", text);
  return *id;
}

void check_reply(const net::Reply& reply, const std::string& what) {
  if (reply.code() == net::kSlurmSuccess) return;
  const std::string job = what.substr(what.rfind(' ') + 1);
  throw Error(reply.code() == net::kAccessDenied ? ErrorKind::kPermission : ErrorKind::kRefused,
              fmt::format("{}: {}", what, refusal(reply)), 0, hint(reply.code(), job));
}

int carry_out(net::Operation operation, const std::string& name, const JobOptions& options, const Cli& cli) {
  const net::Request request = request_from(operation, options);
  const JobClient client(options.config);
  const std::string what = fmt::format("{} {}", name, options.job);
  const net::Reply reply = options.wait ? ask_and_watch(client, request, cli.verbosity) : client.ask(request);
  check_reply(reply, what);
  if (options.wait) {
    print_versions(reply.steps_size() > 0 ? reply : client.ask(question_about(request)), options.json);
  } else if (options.json) {
    print_json({{"operation", name}, {"job", options.job}, {"accepted", true}});
  } else {
    Reporter(cli.verbosity).note(what + ": accepted");
  }
  return kExitOk;
}

}  // namespace icp

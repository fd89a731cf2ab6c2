// SPDX-License-Identifier: GPL-2.0-or-later
// icpctld, the coordinator of a cluster: see docs/man/icpctld.8.
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "coordinator/config.h"
#include "coordinator/icpctld/catalog.h"
#include "coordinator/icpctld/metrics.h"
#include "coordinator/icpctld/moments.h"
#include "coordinator/icpctld/requests.h"
#include "coordinator/icpctld/rest.h"
#include "coordinator/icpctld/server.h"
#include "coordinator/icpctld/slurm_jobs.h"
#include "coordinator/icpctld/steps.h"
#include "coordinator/icpctld/time_limits.h"
#include "coordinator/log_format.h"
#include "engine/base/error.h"

namespace {

using namespace icp;

constexpr auto kCleanEvery = std::chrono::hours(1);
constexpr int64_t kRemembered = 30 * 24 * 3600;  // seconds after a step's end

void start_log(const Config& config) {
  std::shared_ptr<spdlog::logger> logger;
  if (config.coordinator_log == "none") {
    logger = spdlog::create<spdlog::sinks::null_sink_mt>("none");
  } else if (config.coordinator_log == "syslog") {
    logger = spdlog::syslog_logger_mt("syslog", "icpctld", LOG_PID, LOG_DAEMON, true);
  } else if (config.coordinator_log == "stderr") {
    logger = spdlog::stderr_logger_mt("stderr");
  } else {
    logger = spdlog::basic_logger_mt("file", config.coordinator_log);
  }
  if (config.coordinator_log == "syslog") {
    logger->set_formatter(std::make_unique<PrintableFormatter>("%v", ""));
  } else {
    logger->set_formatter(std::make_unique<PrintableFormatter>("%Y-%m-%dT%H:%M:%S.%e %l %v"));
  }
  logger->set_level(spdlog::level::from_str(config.log_level));
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(logger);
}

// A connection is a descriptor, and 1,024 of them, the usual soft limit, are few.
void allow_connections() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

class Daemon {
 public:
  Daemon(std::string config_path, Config config)
      : config_path_(std::move(config_path)),
        config_(std::move(config)),
        catalog_(config_.state_dir),
        steps_(io_, config_, catalog_),
        requests_(io_, steps_, catalog_, ::geteuid()),
        moments_(io_, config_, steps_, catalog_, requests_),
        time_limits_(
            io_, steps_, config_.requeue_margin,
            [this](uint32_t job, auto told) { requests_.look(job, std::move(told)); },
            [this](uint32_t job, bool requeue, auto again) { moments_.at_time_limit(job, requeue, std::move(again)); }),
        server_(io_, config_, steps_, requests_),
        stop_(io_, SIGTERM, SIGINT),
        reload_(io_, SIGHUP),
        clean_(io_) {
    if (!config_.rest.empty() || config_.rest_listen) rest_.emplace(io_, config_, requests_);
    if (config_.metrics) metrics_.emplace(io_, *config_.metrics, [this] { return metrics_text(); });
  }

  void run() {
    stop_.async_wait([this](boost::system::error_code error, int) {
      if (error) return;
      spdlog::info("icpctld ends");
      ::sd_notify(0, "STOPPING=1");
      io_.stop();
    });
    on_reload();
    on_clean();
    spdlog::info("icpctld {} listens at {}", ICP_VERSION, to_text(config_.listen));
    ::sd_notify(0, "READY=1");
    while (!io_.stopped()) {
      try {
        io_.run();
      } catch (const Error& error) {
        // The catalog cannot be read or written, as a rule: what was being done is lost, everything else goes on.
        spdlog::error("{}", error.what());
      }
    }
  }

 private:
  void on_reload() {
    reload_.async_wait([this](boost::system::error_code error, int) {
      if (error) return;
      timespec now{};
      ::clock_gettime(CLOCK_MONOTONIC, &now);
      ::sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%lld", now.tv_sec * 1'000'000LL + now.tv_nsec / 1000);
      try {
        const Config config = Config::load(config_path_, true);
        steps_.set_config(config);
        spdlog::set_level(spdlog::level::from_str(config.log_level));
        spdlog::info("{} is read again: time-outs, max_writers, jitter and log_level hold from now on", config_path_);
      } catch (const Error& wrong) {
        spdlog::error("{}; the configuration before stays", wrong.what());
      }
      ::sd_notify(0, "READY=1");
      on_reload();
    });
  }

  std::string metrics_text() const {
    std::string text;
    const auto add = [&text](const char* name, const char* type, const char* help, auto value) {
      text += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n{0} {3}\n", name, help, type, value);
    };
    const Steps::Counters& counters = steps_.counters();
    add("icpctld_versions_total", "counter", "Versions committed on all nodes of their step.", counters.committed);
    add("icpctld_versions_failed_total", "counter", "Versions that were given up.", counters.failed);
    add("icpctld_version_bytes_total", "counter", "Bytes of the committed versions.", counters.bytes);
    add("icpctld_version_stop_seconds_total", "counter", "Time that processes stood still for committed versions.",
        static_cast<double>(counters.stop_ns) / 1e9);
    add("icpctld_version_seconds_total", "counter", "Time from the beginning of committed versions to their commit.",
        static_cast<double>(counters.total_ns) / 1e9);
    const Moments::Counters& jobs = moments_.counters();
    add("icpctld_jobs_requeued_total", "counter", "Jobs requeued unasked: time limits, drained nodes, failed restarts.",
        jobs.requeued);
    add("icpctld_restarts_failed_total", "counter", "Steps of requeued jobs that could not be restored.",
        jobs.restarts_failed);
    add("icpctld_jobs_held_total", "counter", "Jobs held because no version could be restored.", jobs.held);
    add("icpctld_steps_hung_total", "counter", "Steps that did nothing for hang_after.", jobs.hung);
    add("icpctld_work_lost_seconds_total", "counter", "What ended runs had done since their last version.",
        static_cast<double>(jobs.work_lost_ms) / 1e3);
    add("icpctld_rounds", "gauge", "Versions being taken now.", steps_.rounds_under_way());
    add("icpctld_steps", "gauge", "Steps whose agents are connected.", steps_.all().size());
    add("icpctld_connections", "gauge", "Connections.", server_.connections());
    return text;
  }

  void on_clean() {
    try {
      catalog_.forget(kRemembered);
    } catch (const Error& error) {
      spdlog::error("{}", error.what());
    }
    clean_.expires_after(kCleanEvery);
    clean_.async_wait([this](boost::system::error_code error) {
      if (!error) on_clean();
    });
  }

  const std::string config_path_;
  const Config config_;
  boost::asio::io_context io_{1};
  Catalog catalog_;
  Steps steps_;
  Requests requests_;
  Moments moments_;
  TimeLimits time_limits_;
  Server server_;
  boost::asio::signal_set stop_, reload_;
  boost::asio::steady_timer clean_;
  std::optional<Metrics> metrics_;
  std::optional<Rest> rest_;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "The slurm-icp coordinator: decides when the steps of a cluster are checkpointed, and answers icp and "
      "scontrol checkpoint. Stays in the foreground.",
      "icpctld");
  app.set_version_flag("--version", std::string("icpctld ") + ICP_VERSION);
  std::string path = "/etc/slurm-icp/icp.yaml", slurm_conf;
  bool check = false;
  app.add_option("--config", path, "icp.yaml")->capture_default_str();
  app.add_option("--slurm-conf", slurm_conf, "slurm.conf; by default Slurm's own rules find it");
  app.add_flag("--check", check, "say whether the configuration is correct, and end");
  CLI11_PARSE(app, argc, argv);
  try {
    Config config = Config::load(path, true);
    if (check) {
      std::printf("%s: correct\n", path.c_str());
      return 0;
    }
    ::umask(0077);
    start_log(config);
    allow_connections();
    if (::mkdir(config.state_dir.c_str(), 0700) != 0 && errno != EEXIST)
      throw_errno("cannot make {}", config.state_dir);
    init_slurm(slurm_conf);
    Daemon(path, std::move(config)).run();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "icpctld: %s\n", error.what());
    return 1;
  }
}

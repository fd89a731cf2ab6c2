// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/logging.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/syslog_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include "coordinator/log_format.h"

namespace icp {

void start_logging(const Config& config, const std::string& who) {
  std::shared_ptr<spdlog::logger> logger;
  const auto to_syslog = [&who] {
    auto log = spdlog::syslog_logger_mt("syslog", "icpstepd " + printable(who), LOG_PID, LOG_DAEMON, true);
    log->set_formatter(std::make_unique<PrintableFormatter>("%v", ""));
    return log;
  };
  ::umask(0077);
  if (config.log == "none") {
    logger = spdlog::create<spdlog::sinks::null_sink_mt>("none");
  } else if (config.log == "syslog") {
    logger = to_syslog();
  } else {
    try {
      logger = spdlog::basic_logger_mt("file", config.log);  // O_APPEND: all agents of the node write whole lines
      logger->set_formatter(
          std::make_unique<PrintableFormatter>("%Y-%m-%dT%H:%M:%S.%e %l " + in_pattern(who) + ": %v"));
    } catch (const spdlog::spdlog_ex& error) {
      logger = to_syslog();
      logger->warn("{}", error.what());
    }
  }
  logger->set_level(spdlog::level::from_str(config.log_level));
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(logger);
}

}  // namespace icp

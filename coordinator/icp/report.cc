// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/report.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>

#include "coordinator/icp/answer.h"
#include "coordinator/icp/format.h"
#include "coordinator/log_format.h"

namespace icp {

void set_up_logging(int verbosity) {
  auto logger = spdlog::stderr_logger_st("icp");
  logger->set_formatter(std::make_unique<PrintableFormatter>(verbosity >= 2 ? "icp: %H:%M:%S.%e %l: %v" : "icp: %v"));
  logger->set_level(verbosity >= 2 ? spdlog::level::debug : verbosity == 1 ? spdlog::level::info : spdlog::level::warn);
  spdlog::set_default_logger(std::move(logger));
}

std::string sentence(const Error& error) { return printable(with_hint(error)); }

std::string summary(const pb::VersionStats& stats) {
  return fmt::format("{}, {}, stopped {}, {}", counted(stats.pages_written(), "page"),
                     human_bytes(stats.bytes_written()), human_time(stats.stop_ns()), human_time(stats.total_ns()));
}

Reporter::Reporter(int verbosity) : chatty_(!answers_a_program() && (verbosity > 0 || isatty(STDERR_FILENO) == 1)) {}

void Reporter::note(const std::string& text) const {
  if (chatty_) fmt::print(stderr, "icp: {}\n", text);
}

void Reporter::version_taken(const CheckpointResult& result) {
  last_failure_.clear();
  note(fmt::format("version {}: {}", result.version, summary(result.stats)));
}

void Reporter::version_failed(const std::string& reason) {
  if (reason == last_failure_) return;
  last_failure_ = reason;
  if (answers_a_program()) return;  // it is the answer
  print_error(fmt::format("no version taken: {}", reason));
}

}  // namespace icp

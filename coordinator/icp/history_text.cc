// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/history_text.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "coordinator/icp/format.h"
#include "coordinator/icp/step_text.h"
#include "coordinator/icp/users.h"

namespace icp {

uint64_t length_ms(const net::RunRecord& run, uint64_t now_unix_ms) {
  const uint64_t end = run.ended_unix_ms() == 0 ? now_unix_ms : run.ended_unix_ms();
  return run.began_unix_ms() < end ? end - run.began_unix_ms() : 0;
}

std::string end_text(const net::RunRecord& run) {
  if (run.ended_unix_ms() == 0)
    return run.hung_unix_ms() == 0 ? "runs" : "does nothing since " + local_time(run.hung_unix_ms() * kNsInMs);
  return run.why().empty() ? "not known why" : run.why();
}

std::optional<uint64_t> work_lost_ms(const net::RunRecord& run) {
  if (run.ended_unix_ms() == 0 || run.restart_failed() || run.why() == "COMPLETED") return std::nullopt;
  if (run.ended_with_version() && run.versions() > 0) return 0;
  if (run.versions() == 0) return length_ms(run, 0);
  const uint64_t taken = run.last_taken_unix_ns() / kNsInMs;
  return taken < run.ended_unix_ms() ? run.ended_unix_ms() - taken : 0;
}

std::string history_text(const net::Reply& reply, uint64_t now_unix_ms) {
  Table table({">RUN", "BEGAN", ">TIME", "NODES", ">VERSIONS", ">BYTES", ">STOPPED", ">LOST", "ENDED"});
  uint64_t versions = 0, lost = 0, stopped = 0;
  for (const net::RunRecord& run : reply.runs()) {
    const auto of_run = work_lost_ms(run);
    versions += run.versions();
    stopped += run.stop_ns();
    lost += of_run.value_or(0);
    table.add({std::to_string(run.restarts()), local_time(run.began_unix_ms() * kNsInMs),
               rough_duration(length_ms(run, now_unix_ms)), printable(run.nodes()), with_commas(run.versions()),
               human_bytes(run.bytes()), human_time(run.stop_ns()), of_run ? human_time(*of_run * kNsInMs) : "-",
               printable(end_text(run))});
  }
  return table.text() + fmt::format("{}, {}, stopped for {} in all, {} of work lost\n",
                                    counted(static_cast<uint64_t>(reply.runs_size()), "run"),
                                    counted(versions, "version"), human_time(stopped), human_time(lost * kNsInMs));
}

nlohmann::json history_json(const net::Reply& reply) {
  nlohmann::json all = nlohmann::json::array();
  for (const net::RunRecord& run : reply.runs()) {
    nlohmann::json value = {{"job", run.job()},
                            {"restarts", run.restarts()},
                            {"uid", run.uid()},
                            {"user", user_name(run.uid())},
                            {"began_unix_ms", run.began_unix_ms()},
                            {"ended_unix_ms", run.ended_unix_ms()},
                            {"nodes", run.nodes()},
                            {"why", run.why()},
                            {"restart_failed", run.restart_failed()},
                            {"versions", run.versions()},
                            {"last_version", run.last_version()},
                            {"ended_with_version", run.ended_with_version()},
                            {"hung_unix_ms", run.hung_unix_ms()},
                            {"last_taken_unix_ns", run.last_taken_unix_ns()},
                            {"stop_ns", run.stop_ns()},
                            {"total_ns", run.total_ns()},
                            {"bytes_written", run.bytes()}};
    const auto lost = work_lost_ms(run);
    value["work_lost_ms"] = lost ? nlohmann::json(*lost) : nlohmann::json(nullptr);
    all.push_back(std::move(value));
  }
  return all;
}

}  // namespace icp

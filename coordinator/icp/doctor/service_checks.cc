// SPDX-License-Identifier: GPL-2.0-or-later
#include <fmt/format.h>

#include <chrono>
#include <cmath>

#include "coordinator/icp/doctor/checks.h"
#include "engine/base/error.h"

namespace icp::doctor {

namespace {

// MUNGE's credentials are good for five minutes; beyond a second times in icp status are odd.
constexpr double kOddSeconds = 1, kWrongSeconds = 60;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void check_answer(const net::Reply& reply, double asked, double answered, Diagnosis& diagnosis) {
  if (reply.release().empty())
    diagnosis.warning("coordinator.release", "icpctld does not say its release: an older one",
                      "install the same slurm-icp everywhere");
  else if (reply.release() != ICP_VERSION)
    diagnosis.error("coordinator.release",
                    fmt::format("icpctld is of slurm-icp {}, icp of {}", reply.release(), ICP_VERSION),
                    "install the same slurm-icp everywhere");
  else
    diagnosis.ok("coordinator.release", "icpctld is of slurm-icp " + reply.release());
  if (reply.now_unix_ms() == 0) return;
  // The answer was given between the two: the clocks differ at least by how far it lies outside.
  const double there = static_cast<double>(reply.now_unix_ms()) / 1000;
  const double difference = there < asked ? there - asked : there > answered ? there - answered : 0;
  const std::string text =
      fmt::format("this clock and that of icpctld's machine differ by {:.1f} s", std::fabs(difference));
  if (std::fabs(difference) > kWrongSeconds)
    diagnosis.error("coordinator.clock", text + ": credentials are about to be refused",
                    "synchronise both (chrony, NTP)");
  else if (std::fabs(difference) > kOddSeconds)
    diagnosis.warning("coordinator.clock", text, "synchronise both (chrony, NTP)");
  else
    diagnosis.ok("coordinator.clock", "the same as here");
}

}  // namespace

void check_services(const Host& host, const Config& config, Diagnosis& diagnosis) {
  if (config.coordinators.empty())
    return diagnosis.ok("coordinator", "none is configured: steps on one node, each by its own agent's timer");
  try {
    host.try_munge(config);
    diagnosis.ok("munge", "credentials are made and read");
  } catch (const Error& error) {
    diagnosis.error("munge", error.what(), "start munged; every machine needs the same munge.key, and the right time");
  }
  const double asked = now_seconds();
  try {
    const net::Reply reply = host.ask_coordinator(config);
    diagnosis.ok("coordinator", "icpctld answers");
    check_answer(reply, asked, now_seconds(), diagnosis);
  } catch (const Error& error) {
    diagnosis.error("coordinator", error.what(), "systemctl status icpctld there; firewalls; coordinator: in icp.yaml");
  }
}

}  // namespace icp::doctor

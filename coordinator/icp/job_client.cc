// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/job_client.h"

#include <cstdlib>
#include <filesystem>

#include "coordinator/config.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/users.h"
#include "coordinator/protocol/slurm_errors.h"
#include "engine/base/error.h"

namespace icp {

namespace {

constexpr const char* kDefaultConfig = "/etc/slurm-icp/icp.yaml";

}  // namespace

JobClient::JobClient(const std::string& config) {
  const char* variable = std::getenv("ICP_CONFIG");
  std::string path = config;
  if (path.empty() && variable != nullptr) path = variable;
  const bool named = !path.empty();
  if (!named) path = kDefaultConfig;
  const Config values = Config::load(path, named);
  if (values.coordinators.empty()) {
    throw Error(ErrorKind::kRefused, fmt::format("no coordinator is configured in {}", path), 0,
                "set coordinator: there, or name another file with ICP_CONFIG or --config");
  }
  settings_.coordinators = values.coordinators;
  settings_.munge_socket = values.munge_socket;
  try {
    settings_.coordinator_uid = user_identity(values.coordinator_user).uid;
  } catch (const Error& error) {
    throw_error(ErrorKind::kUsage, "{}: coordinator_user: {}", path, error.what());
  }
}

net::Reply JobClient::ask(const net::Request& request, std::chrono::milliseconds timeout) const {
  return net::ask(settings_, request, timeout);
}

net::Request request_of(net::Operation operation, const std::optional<JobId>& id) {
  net::Request request;
  request.set_operation(operation);
  if (!id) return request;
  request.set_job(id->job);
  request.set_has_step(id->step.has_value());
  request.set_step(id->step.value_or(0));
  return request;
}

std::string absolute_dir(const std::string& dir) {
  std::error_code error;
  const auto path = std::filesystem::absolute(dir, error);
  if (error) throw_error(ErrorKind::kSystem, "cannot find out where {} is: {}", dir, error.message());
  return path.string();
}

std::string refusal(const net::Reply& reply) {
  return reply.text().empty() ? net::slurm_error_text(reply.code()) : printable(reply.text());
}

}  // namespace icp

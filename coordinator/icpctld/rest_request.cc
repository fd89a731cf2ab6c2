// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/rest_request.h"

#include <fmt/format.h>

#include <charconv>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "coordinator/icp/history_text.h"
#include "coordinator/icp/job_id.h"
#include "coordinator/icp/step_json.h"
#include "coordinator/protocol/slurm_errors.h"

namespace icp {
namespace {

using nlohmann::json;

constexpr std::string_view kRoot = "/slurm-icp/v1/";
constexpr uint32_t kDefaultVersions = 20, kMostVersions = 1000;
constexpr int kDeepest = 2;  // of a body: an object of values

[[noreturn]] void refuse(unsigned status, std::string text) { throw RestError{status, std::move(text)}; }

std::vector<std::string> parts_of(std::string_view path) {
  std::vector<std::string> parts;
  if (path.ends_with('/')) parts.emplace_back();  // nothing has such a path
  while (!path.empty()) {
    const size_t slash = std::min(path.find('/'), path.size());
    parts.emplace_back(path.substr(0, slash));
    path.remove_prefix(std::min(slash + 1, path.size()));
  }
  return parts;
}

// "%2B" and the like, as far as names of nodes need it: commas and brackets.
std::string decoded(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] != '%') {
      plain += text[i];
      continue;
    }
    unsigned value = 0;
    const char* const digits = text.data() + i + 1;
    if (i + 2 >= text.size() || std::from_chars(digits, digits + 2, value, 16).ptr != digits + 2)
      refuse(400, "a % in the path is not followed by two hexadecimal digits");
    plain += static_cast<char>(value);
    i += 2;
  }
  return plain;
}

void set_job(net::Request& request, const std::string& text) {
  const auto id = parse_job_id(text);
  if (!id || id->job == 0)
    refuse(400, fmt::format("\"{}\" is neither JOB nor JOB.STEP, as in 12, 12.0 or 12.batch", text));
  request.set_job(id->job);
  request.set_has_step(id->step.has_value());
  request.set_step(id->step.value_or(0));
}

void read_query(net::Request& request, std::string_view query) {
  request.set_versions(kDefaultVersions);
  if (query.empty()) return;
  constexpr std::string_view kVersions = "versions=";
  uint32_t value = 0;
  const std::string_view number = query.starts_with(kVersions) ? query.substr(kVersions.size()) : std::string_view();
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
  if (number.empty() || error != std::errc() || end != number.data() + number.size() || value > kMostVersions)
    refuse(400, fmt::format("the query is not versions=N, N from 0 to {}", kMostVersions));
  request.set_versions(value);
}

template <typename Value>
Value value_of(const json& entry, const std::string& key, const char* what) {
  try {
    if constexpr (std::is_same_v<Value, bool>) {
      if (!entry.is_boolean()) refuse(400, fmt::format("{} is not {}", key, what));
    } else if constexpr (std::is_integral_v<Value>) {
      if (!entry.is_number_unsigned() || entry.get<uint64_t>() > UINT32_MAX)
        refuse(400, fmt::format("{} is not {}", key, what));
    }
    return entry.get<Value>();
  } catch (const json::exception&) {
    refuse(400, fmt::format("{} is not {}", key, what));
  }
}

void read_body(net::Request& request, std::string_view body, const std::map<std::string, bool>& known) {
  if (body.find_first_not_of(" \t\r\n") == std::string_view::npos) return;
  int depth = 0;
  const auto shallow = [&depth](int at, json::parse_event_t event, json&) {
    if (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start)
      depth = std::max(depth, at + 1);
    return depth < kDeepest;
  };
  const json entries = json::parse(body.begin(), body.end(), shallow, false);
  if (!entries.is_object() || depth >= kDeepest) refuse(400, "the body is not a JSON object of values");
  for (const auto& [key, entry] : entries.items()) {
    if (!known.contains(key)) refuse(400, fmt::format("\"{}\" is not known here", key));
    if (key == "image_dir") request.set_image_dir(value_of<std::string>(entry, key, "a text"));
    if (key == "nodes") request.set_nodes(value_of<std::string>(entry, key, "a text"));
    if (key == "reason") request.set_reason(value_of<std::string>(entry, key, "a text"));
    if (key == "max_wait_s") request.set_max_wait_s(value_of<uint32_t>(entry, key, "a number of seconds"));
    if (key == "wait") request.set_wait(value_of<bool>(entry, key, "true or false"));
    if (key == "stick_to_nodes") request.set_stick_to_nodes(value_of<bool>(entry, key, "true or false"));
  }
}

struct Action {
  net::Operation operation;
  std::map<std::string, bool> keys;
};

const std::map<std::string, Action>& actions() {
  static const std::map<std::string, bool> version{{"image_dir", true}, {"max_wait_s", true}, {"wait", true}};
  static const std::map<std::string, bool> move{
      {"image_dir", true}, {"max_wait_s", true}, {"wait", true}, {"nodes", true}};
  static const std::map<std::string, Action> all{
      {"create", {net::OP_CREATE, version}},
      {"vacate", {net::OP_VACATE, version}},
      {"requeue", {net::OP_REQUEUE, version}},
      {"move", {net::OP_MOVE, move}},
      {"restart", {net::OP_RESTART, {{"image_dir", true}, {"stick_to_nodes", true}}}},
      {"enable", {net::OP_ENABLE, {}}},
      {"disable", {net::OP_DISABLE, {}}},
  };
  return all;
}

json envelope(const net::Reply& reply) {
  return {{"meta", {{"release", reply.release()}, {"now_unix_ms", reply.now_unix_ms()}}},
          {"errors", json::array()},
          {"warnings", json::array()}};
}

std::string dumped(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace) + "\n"; }

}  // namespace

net::Request parse_rest(std::string_view method, std::string_view target, std::string_view body) {
  const size_t mark = std::min(target.find('?'), target.size());
  const std::string_view path = target.substr(0, mark), query = target.substr(std::min(mark + 1, target.size()));
  if (!path.starts_with(kRoot)) refuse(404, fmt::format("paths begin with {}", kRoot));
  const std::vector<std::string> parts = parts_of(path.substr(kRoot.size()));
  const size_t count = parts.size();
  const std::string first = count > 0 ? parts[0] : "", last = count > 2 ? parts[2] : "";
  net::Request request;
  bool post = false;
  if (count == 1 && (first == "jobs" || first == "ipc")) {
    request.set_operation(first == "jobs" ? net::OP_STATUS : net::OP_IPC);
  } else if (count == 2 && first == "job") {
    request.set_operation(net::OP_STATUS);
  } else if (count == 3 && first == "job" && (last == "history" || last == "ipc")) {
    request.set_operation(last == "history" ? net::OP_HISTORY : net::OP_IPC);
  } else if (count == 3 && first == "job" && actions().contains(last)) {
    request.set_operation(actions().at(last).operation);
    post = true;
  } else if (count == 3 && first == "nodes" && last == "drain") {
    request.set_operation(net::OP_DRAIN);
    post = true;
  } else {
    refuse(404, "there is no such path");
  }
  if (method != (post ? "POST" : "GET")) refuse(405, post ? "this wants POST" : "this wants GET");
  if (post && !query.empty()) refuse(400, "POST takes no query");
  if (!post) read_query(request, query);
  if (first == "job") set_job(request, parts[1]);
  if (request.operation() == net::OP_DRAIN) {
    read_body(request, body, {{"reason", true}});
    request.set_nodes(decoded(parts[1]));
  } else if (post) {
    read_body(request, body, actions().at(last).keys);
  }
  return request;
}

unsigned rest_status(const net::Reply& reply) {
  switch (reply.code()) {
    case net::kSlurmSuccess:
      return 200;
    case net::kAccessDenied:
      return 403;
    case net::kInvalidJobId:
      return 404;
    case net::kInProgress:
    case net::kDisabled:
    case net::kJobPending:
    case net::kAlreadyDone:
    case net::kJobNotFinished:
      return 409;
    case net::kNotSupported:
      return 422;
    default:
      return 500;
  }
}

std::string rest_body(const net::Request& request, const net::Reply& reply) {
  json value = envelope(reply);
  if (reply.code() != 0) {
    const std::string text = reply.text().empty() ? net::slurm_error_text(reply.code()) : reply.text();
    value["errors"].push_back({{"error_number", reply.code()},
                               {"error", net::slurm_error_text(reply.code())},
                               {"description", text},
                               {"source", "icpctld"}});
  } else if (!reply.text().empty()) {
    value["warnings"].push_back({{"description", reply.text()}, {"source", "icpctld"}});
  }
  switch (request.operation()) {
    case net::OP_STATUS:
    case net::OP_DRAIN:
      value["steps"] = steps_json(reply);
      break;
    case net::OP_HISTORY:
      value["runs"] = history_json(reply);
      break;
    case net::OP_IPC:
      value["ipc"] = ipc_json(reply);
      break;
    default:
      value["accepted"] = reply.code() == 0;
  }
  return dumped(value);
}

std::string rest_body(const RestError& error) {
  json value = envelope({});
  value["errors"].push_back(
      {{"error_number", error.status}, {"error", "request"}, {"description", error.text}, {"source", "icpctld"}});
  return dumped(value);
}

}  // namespace icp

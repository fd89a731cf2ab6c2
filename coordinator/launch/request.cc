// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/launch/request.h"

#include <algorithm>
#include <charconv>
#include <iterator>

namespace icp::launch {
namespace {

constexpr std::string_view kMark = "srun 1";
// Of Open MPI 4 and 5 (PRRTE), and of MPICH (hydra).
constexpr std::string_view kDaemons[] = {"orted", "prted", "hydra_pmi_proxy", "hydra_bstrap_proxy"};
constexpr std::string_view kNodes = "SLURM_JOB_NODELIST";

std::optional<size_t> number_in(const std::string& text) {
  size_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::string_view name_of(std::string_view variable) { return variable.substr(0, variable.find('=')); }

std::string_view value_of(const std::vector<std::string>& environment, std::string_view name) {
  for (const std::string_view variable : environment)
    if (name_of(variable) == name) return variable.substr(std::min(variable.size(), name.size() + 1));
  return {};
}

void name_no_nodes(std::vector<std::string>& arguments) {
  for (auto at = arguments.begin(); at != arguments.end();) {
    if (*at == "--nodelist" || *at == "-w") {
      at = arguments.erase(at, std::min(at + 2, arguments.end()));
    } else if (at->starts_with("--nodelist=") || (at->starts_with("-w") && at->size() > 2)) {
      at = arguments.erase(at);
    } else if (!at->starts_with('-') && at != arguments.begin() && starts_daemons({*at})) {
      return;  // the daemon's own follow
    } else {
      ++at;
    }
  }
}

}  // namespace

std::string Request::encode() const {
  std::string bytes;
  const auto put = [&bytes](std::string_view text) { bytes.append(text).push_back('\0'); };
  put(kMark);
  put(program);
  put(directory);
  put(std::to_string(umask));
  put(std::to_string(arguments.size()));
  for (const std::string& one : arguments) put(one);
  for (const std::string& one : environment) put(one);
  return bytes;
}

std::optional<Request> Request::decode(std::string_view bytes) {
  if (bytes.size() > kMaxRequest || bytes.empty() || bytes.back() != '\0') return std::nullopt;
  std::vector<std::string> parts;
  for (size_t at = 0; at < bytes.size();) {
    const size_t end = bytes.find('\0', at);
    parts.emplace_back(bytes.substr(at, end - at));
    at = end + 1;
  }
  constexpr size_t kFixed = 5;
  if (parts.size() < kFixed || parts[0] != kMark) return std::nullopt;
  const auto umask = number_in(parts[3]), count = number_in(parts[4]);
  if (!umask || *umask > 0777 || !count || *count == 0 || *count > parts.size() - kFixed) return std::nullopt;
  if (!parts[1].starts_with('/') || !parts[2].starts_with('/')) return std::nullopt;
  Request request{parts[1], parts[2], static_cast<mode_t>(*umask), {}, {}};
  const auto first = parts.begin() + kFixed, last = first + static_cast<ptrdiff_t>(*count);
  request.arguments.assign(std::make_move_iterator(first), std::make_move_iterator(last));
  request.environment.assign(std::make_move_iterator(last), std::make_move_iterator(parts.end()));
  return request;
}

bool starts_daemons(const std::vector<std::string>& arguments) {
  return std::any_of(arguments.begin(), arguments.end(), [](const std::string& argument) {
    const std::string_view name = std::string_view(argument).substr(argument.rfind('/') + 1);
    return std::find(std::begin(kDaemons), std::end(kDaemons), name) != std::end(kDaemons);
  });
}

void set_variable(std::vector<std::string>& environment, const std::string& name_value) {
  const std::string_view name = name_of(name_value);
  std::erase_if(environment, [name](const std::string& variable) { return name_of(variable) == name; });
  if (name.size() != name_value.size()) environment.push_back(name_value);
}

Request in_new_allocation(Request request, const std::vector<std::string>& allocation) {
  if (value_of(request.environment, kNodes) != value_of(allocation, kNodes)) name_no_nodes(request.arguments);
  for (const std::string& variable : allocation)
    if (variable.starts_with("SLURM_")) set_variable(request.environment, variable);
  return request;
}

}  // namespace icp::launch

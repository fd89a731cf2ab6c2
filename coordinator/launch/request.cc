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
constexpr std::string_view kNodes = "SLURM_JOB_NODELIST", kNodeCount = "SLURM_JOB_NUM_NODES",
                           kNodeName = "SLURMD_NODENAME";

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

// An option of srun's with its value: "--nodes=2", "--nodes 2", "-N2", "-N 2".
struct Option {
  size_t words = 0;   // 0: another one stands here
  std::string value;  // empty when there is none
};

Option option_at(const std::vector<std::string>& arguments, size_t at, std::string_view name, std::string_view letter) {
  const std::string& word = arguments[at];
  if (word == name || (!letter.empty() && word == letter))
    return at + 1 < arguments.size() ? Option{2, arguments[at + 1]} : Option{1, ""};
  if (word.starts_with(name) && word.size() > name.size() && word[name.size()] == '=')
    return {1, word.substr(name.size() + 1)};
  if (!letter.empty() && word.starts_with(letter) && !word.starts_with("--")) return {1, word.substr(letter.size())};
  return {};
}

// For an allocation of so many nodes (0: not known), other ones than before: which they are is Slurm's to choose, and
// where there are fewer of them a node gets several daemons. `script_node` gets one only if it has to: what runs there
// listens at the same ports as the daemons' programs, as a rule.
void fit_nodes(std::vector<std::string>& arguments, size_t nodes, std::string_view script_node) {
  std::optional<size_t> wanted;
  for (size_t at = 1; at < arguments.size();) {
    if (!arguments[at].starts_with('-') && starts_daemons({arguments[at]})) break;  // the daemon's own follow
    Option option = option_at(arguments, at, "--nodelist", "-w");
    if (option.words == 0) option = option_at(arguments, at, "--ntasks-per-node", "");
    std::vector<std::string> instead;
    if (option.words == 0) {
      option = option_at(arguments, at, "--nodes", "-N");
      if (option.words != 0) wanted = number_in(option.value);
      if (option.words != 0 && wanted && nodes != 0 && *wanted > nodes)
        instead = {"--nodes=" + std::to_string(nodes)};
      else
        option.words = 0;
    }
    const auto begin = arguments.begin() + static_cast<ptrdiff_t>(at);
    arguments.erase(begin, begin + static_cast<ptrdiff_t>(option.words));
    arguments.insert(arguments.begin() + static_cast<ptrdiff_t>(at), instead.begin(), instead.end());
    if (option.words == 0 || !instead.empty()) at++;
  }
  if (wanted && *wanted < nodes && !script_node.empty())
    arguments.insert(arguments.begin() + 1, "--exclude=" + std::string(script_node));
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
  if (value_of(request.environment, kNodes) != value_of(allocation, kNodes))
    fit_nodes(request.arguments, number_in(std::string(value_of(allocation, kNodeCount))).value_or(0),
              value_of(allocation, kNodeName));
  for (const std::string& variable : allocation)
    if (variable.starts_with("SLURM_")) set_variable(request.environment, variable);
  return request;
}

}  // namespace icp::launch

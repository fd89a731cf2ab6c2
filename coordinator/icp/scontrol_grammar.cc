// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/scontrol_grammar.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <ctime>

#include "coordinator/icp/format.h"
#include "coordinator/icp/job_id.h"
#include "coordinator/protocol/slurm_errors.h"

namespace icp {

namespace {

using net::Operation;

struct Word {
  std::string_view name;
  size_t least;  // letters
  Operation operation;
};

// The order matters: "re" is a requeue.
constexpr std::array<Word, 8> kOperations{{{"able", 1, net::OP_ABLE},
                                           {"disable", 1, net::OP_DISABLE},
                                           {"enable", 2, net::OP_ENABLE},
                                           {"create", 2, net::OP_CREATE},
                                           {"requeue", 2, net::OP_REQUEUE},
                                           {"vacate", 2, net::OP_VACATE},
                                           {"restart", 2, net::OP_RESTART},
                                           {"error", 2, net::OP_ERROR}}};

// Without the locale: a script's line means the same everywhere.
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool same(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) { return lower(x) == lower(y); });
}

bool is_prefix(std::string_view word, std::string_view of, size_t least) {
  return word.size() >= least && word.size() <= of.size() && same(word, of.substr(0, word.size()));
}

// The value of "<key>=<value>".
std::optional<std::string_view> value_of(std::string_view word, std::string_view key) {
  if (word.size() <= key.size() || word[key.size()] != '=' || !same(word.substr(0, key.size()), key))
    return std::nullopt;
  return word.substr(key.size() + 1);
}

constexpr uint32_t kLongestMaxWait = UINT16_MAX;  // Slurm's

// False if the operation does not take such a word, or not with such a value.
bool take_option(std::string_view word, net::Request& request) {
  const Operation operation = request.operation();
  const bool takes_version = operation == net::OP_CREATE || operation == net::OP_VACATE || operation == net::OP_REQUEUE;
  if (const auto text = value_of(word, "MaxWait"); text && takes_version) {
    uint32_t seconds = 0;
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), seconds);
    if (error != std::errc() || end != text->data() + text->size() || seconds > kLongestMaxWait) return false;
    request.set_max_wait_s(seconds == 0 ? kDefaultMaxWait : seconds);
    return true;
  }
  const bool restart = operation == net::OP_RESTART;
  if (const auto text = value_of(word, "ImageDir"); text && (takes_version || restart)) {
    request.set_image_dir(std::string(*text));
    return true;
  }
  if (restart && is_prefix(word, "StickToNodes", 5)) {
    request.set_stick_to_nodes(true);
    return true;
  }
  return false;
}

// As Slurm's slurm_make_time_str() without SLURM_TIME_FORMAT.
std::string slurm_time(uint64_t unix_seconds) {
  const time_t seconds = static_cast<time_t>(unix_seconds);
  tm parts{};
  std::array<char, 64> text{};
  if (localtime_r(&seconds, &parts) == nullptr) return "Unknown";
  return {text.data(), strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts)};
}

}  // namespace

Operation scontrol_operation(std::string_view word) {
  for (const Word& known : kOperations)
    if (is_prefix(word, known.name, known.least)) return known.operation;
  return net::OP_NONE;
}

ScontrolLine parse_scontrol_line(const std::vector<std::string>& words) {
  ScontrolLine line;
  const auto wrong = [&line](const std::string& text) {
    line.errors.push_back(printable(text));
    return line;
  };
  if (words.size() > 5) return wrong("too many arguments for keyword:" + words[0]);
  if (words.size() < 3) return wrong("too few arguments for keyword:" + (words.empty() ? "" : words[0]));
  const auto id = parse_job_id(words[2]);
  if (!id) return wrong("Invalid job step name");
  const Operation operation = scontrol_operation(words[1]);
  if (operation == net::OP_NONE) return wrong("Invalid checkpoint operation: " + words[1]);

  net::Request& request = line.request;
  request.set_operation(operation);
  request.set_job(id->job);
  request.set_has_step(id->step.has_value());
  request.set_step(id->step.value_or(0));
  if (operation == net::OP_CREATE || operation == net::OP_VACATE || operation == net::OP_REQUEUE)
    request.set_max_wait_s(kDefaultMaxWait);
  for (size_t i = 3; i < words.size(); i++) {
    if (take_option(words[i], request)) continue;
    wrong("scontrol: error: Invalid input: " + words[i]);
    return wrong("scontrol: error: Request aborted");
  }
  return line;
}

ScontrolAnswer scontrol_answer(Operation operation, const net::Reply& reply) {
  if (operation == net::OP_ABLE && (reply.disabled() || reply.code() == net::kDisabled)) return {"No\n", "", 0};
  if (reply.code() != net::kSlurmSuccess) {
    const bool known = net::is_slurm_error(reply.code()) || reply.text().empty();
    const std::string text = known ? net::slurm_error_text(reply.code()) : printable(reply.text());
    return {"", fmt::format("scontrol_checkpoint error: {}\n", text), 1};
  }
  if (operation == net::OP_ABLE)
    return {reply.began_unix() != 0 ? fmt::format("Began at {}\n", slurm_time(reply.began_unix())) : "Yes\n", "", 0};
  if (operation == net::OP_ERROR)
    return {fmt::format("error({}): {}\n", reply.last_code(), printable(reply.text())), "", 0};
  return {};
}

}  // namespace icp

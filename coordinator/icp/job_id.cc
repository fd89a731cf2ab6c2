// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/job_id.h"

#include <fmt/format.h>

#include <charconv>

namespace icp {

namespace {

template <typename T>
bool read_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.starts_with('-');
}

}  // namespace

std::optional<JobId> parse_job_id(std::string_view text) {
  const size_t dot = text.find('.');
  JobId id;
  if (!read_number(text.substr(0, dot), id.job)) return std::nullopt;
  if (dot == std::string_view::npos) return id;
  const std::string_view step = text.substr(dot + 1);
  int32_t number = kBatchStep;
  if (step != "batch" && !read_number(step, number)) return std::nullopt;
  id.step = number;
  return id;
}

std::string step_text(int32_t step) {
  if (step == kBatchStep) return "batch";
  if (step == kExternStep) return "extern";
  if (step == kInteractiveStep) return "interactive";
  return std::to_string(step);
}

std::string job_step_text(uint32_t job, int32_t step) { return fmt::format("{}.{}", job, step_text(step)); }

}  // namespace icp

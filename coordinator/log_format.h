// SPDX-License-Identifier: GPL-2.0-or-later
// One form for the logs of all programs: what is said in them often holds names that users have chosen.
#pragma once

#include <spdlog/pattern_formatter.h>

#include <memory>
#include <string>
#include <utility>

#include "engine/base/printable.h"

namespace icp {

// A pattern of spdlog whose message (%v) is made printable: one line, and nothing that a terminal obeys.
class PrintableFormatter : public spdlog::formatter {
 public:
  // `end` follows each line; a sink that ends lines itself (syslog) wants "".
  explicit PrintableFormatter(std::string pattern, std::string end = "\n")
      : pattern_(std::move(pattern)), end_(std::move(end)), inner_(pattern_, spdlog::pattern_time_type::local, end_) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::string text = printable({message.payload.data(), message.payload.size()});
    spdlog::details::log_msg shown = message;
    shown.payload = text;
    inner_.format(shown, out);
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<PrintableFormatter>(pattern_, end_);
  }

 private:
  const std::string pattern_, end_;
  spdlog::pattern_formatter inner_;
};

// Text to be part of a pattern as it is.
inline std::string in_pattern(std::string_view text) {
  std::string result;
  for (const char c : printable(text)) result += c == '%' ? "%%" : std::string(1, c);
  return result;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// icp report: what became of a job, or is in an image, as one self-contained page of HTML (XHTML syntax; no scripts,
// nothing loaded). Pure functions, thread-safe; whatever the names hold, they stay text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/protocol/coordinator.pb.h"

namespace icp {

struct ReportVersion {
  std::string step;  // "12.0"; empty for an image
  uint32_t version = 0;
  uint64_t taken_unix_ns = 0, stop_ns = 0, total_ns = 0, bytes = 0, pages = 0;
  uint32_t processes = 0;
  bool full = false;
  std::string error;  // not empty: it is damaged
};

// Pages of one mapping, or one shared object, that each version has written.
struct HeatRow {
  std::string name;
  uint64_t pages = 0;                            // in the latest version
  std::vector<std::optional<uint64_t>> written;  // by version, oldest first; nothing: it was not there
};

struct Report {
  std::string title;
  std::vector<net::RunRecord> runs;     // of a job
  std::vector<ReportVersion> versions;  // oldest first
  std::vector<uint32_t> heat_versions;  // what the columns of `heat` are
  std::vector<HeatRow> heat;            // of an image
};

std::string report_html(const Report& report, uint64_t now_unix_ms);

}  // namespace icp

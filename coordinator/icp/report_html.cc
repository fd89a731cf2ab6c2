// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/report_html.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "coordinator/icp/format.h"
#include "coordinator/icp/history_text.h"
#include "coordinator/icp/step_text.h"

namespace icp {
namespace {

constexpr double kWidth = 900, kHeight = 160, kLeft = 70, kBottom = 24;

constexpr const char* kStyle = R"(
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 1000px; padding: 0 1em; color: #1f2328; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25em .7em .25em 0; border-bottom: 1px solid #d0d7de; vertical-align: top; }
td.n, th.n { text-align: right; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: #57606a; }
.axis { stroke: #8c959f; } .run { fill: #b6e3ff; } .failed { fill: #ffcecb; } .mark { stroke: #1a7f37; stroke-width: 1.5; }
.bar { fill: #54aeff; } .full { fill: #8250df; } .bad { color: #cf222e; }
.heat td { padding: .15em .4em; } .quiet { color: #57606a; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } th, td { border-color: #30363d; } svg text { fill: #8d96a0; }
  .run { fill: #0c2d6b; } .failed { fill: #67060c; }
}
)";

// Text as XML has it: what no XML may hold becomes U+FFFD, as broken UTF-8 does (printable() sees to that).
std::string escaped(const std::string& text) {
  std::string safe;
  for (const char letter : printable(text)) {
    switch (letter) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        safe += letter;
    }
  }
  return safe;
}

using Out = std::back_insert_iterator<std::string>;

void cells(std::string& html, std::initializer_list<std::pair<std::string, bool>> row, const char* tag = "td") {
  html += "<tr>";
  for (const auto& [text, number] : row)
    html += fmt::format("<{0}{1}>{2}</{0}>", tag, number ? " class=\"n\"" : "", escaped(text));
  html += "</tr>\n";
}

struct Span {
  uint64_t first = UINT64_MAX, last = 0;  // ms
  void include(uint64_t time) {
    if (time == 0) return;
    first = std::min(first, time);
    last = std::max(last, time);
  }
  double x(uint64_t time) const {
    const double length = last > first ? static_cast<double>(last - first) : 1;
    const double at = time > first ? static_cast<double>(time - first) : 0;
    return kLeft + (kWidth - kLeft - 10) * std::min(1.0, at / length);
  }
};

// Runs as bars, versions as marks in them.
void timeline(std::string& html, const Report& report, uint64_t now) {
  Span span;
  for (const net::RunRecord& run : report.runs) {
    span.include(run.began_unix_ms());
    span.include(run.ended_unix_ms() == 0 ? now : run.ended_unix_ms());
  }
  for (const ReportVersion& version : report.versions) span.include(version.taken_unix_ns / kNsInMs);
  if (span.last == 0) return;
  const double height = 46;
  html += fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"Runs and versions\">\n", kWidth,
                      height + kBottom);
  for (const net::RunRecord& run : report.runs) {
    const double from = span.x(run.began_unix_ms());
    const double to = span.x(run.ended_unix_ms() == 0 ? now : run.ended_unix_ms());
    fmt::format_to(
        Out(html),
        "<rect class=\"{}\" x=\"{:.1f}\" y=\"12\" width=\"{:.1f}\" height=\"28\"><title>run {}: {}</title></rect>\n",
        run.restart_failed() ? "failed" : "run", from, std::max(1.0, to - from), run.restarts(), escaped(run.why()));
  }
  for (const ReportVersion& version : report.versions) {
    const double x = span.x(version.taken_unix_ns / kNsInMs);
    fmt::format_to(
        Out(html),
        "<line class=\"mark\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"8\" y2=\"44\"><title>version {1}</title></line>\n", x,
        version.version);
  }
  fmt::format_to(Out(html), "<text x=\"{}\" y=\"{}\">{}</text>", kLeft, height + 18, local_time(span.first * kNsInMs));
  fmt::format_to(Out(html), "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n</svg>\n", kWidth - 10, height + 18,
                 local_time(span.last * kNsInMs));
}

// One bar for each version.
void chart(std::string& html, const Report& report, const char* title, uint64_t ReportVersion::*what,
           std::string (*text)(uint64_t)) {
  uint64_t most = 1;
  for (const ReportVersion& version : report.versions) most = std::max(most, version.*what);
  const double step = (kWidth - kLeft - 10) / static_cast<double>(std::max<size_t>(report.versions.size(), 1));
  fmt::format_to(Out(html), "<h2>{0}</h2>\n<svg viewBox=\"0 0 {1} {2}\" role=\"img\" aria-label=\"{0}\">\n", title,
                 kWidth, kHeight + kBottom);
  fmt::format_to(Out(html),
                 "<text x=\"0\" y=\"14\">{}</text><line class=\"axis\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>\n",
                 text(most), kLeft, kWidth - 10, kHeight, kHeight);
  double x = kLeft;
  for (const ReportVersion& version : report.versions) {
    const double height = (kHeight - 10) * static_cast<double>(version.*what) / static_cast<double>(most);
    fmt::format_to(
        Out(html),
        "<rect class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"><title>{} version {}: "
        "{}</title></rect>\n",
        version.full ? "full" : "bar", x, kHeight - height, std::max(0.8, step * 0.8), height, escaped(version.step),
        version.version, text(version.*what));
    x += step;
  }
  html += "</svg>\n";
}

void runs_table(std::string& html, const Report& report, uint64_t now) {
  html += "<h2>Runs</h2>\n<table>\n";
  cells(html,
        {{"Run", true},
         {"Began", false},
         {"Time", true},
         {"Nodes", false},
         {"Versions", true},
         {"Stopped", true},
         {"Work lost", true},
         {"Ended", false}},
        "th");
  for (const net::RunRecord& run : report.runs) {
    const auto lost = work_lost_ms(run);
    cells(html, {{std::to_string(run.restarts()), true},
                 {local_time(run.began_unix_ms() * kNsInMs), false},
                 {rough_duration(length_ms(run, now)), true},
                 {run.nodes(), false},
                 {std::to_string(run.versions()), true},
                 {human_time(run.stop_ns()), true},
                 {lost ? human_time(*lost * kNsInMs) : "-", true},
                 {end_text(run), false}});
  }
  html += "</table>\n";
}

void versions_table(std::string& html, const Report& report) {
  html += "<h2>Versions</h2>\n<table>\n";
  cells(html,
        {{"Version", true},
         {"Step", false},
         {"Taken", false},
         {"Processes", true},
         {"Pages", true},
         {"Bytes", true},
         {"Stopped", true},
         {"In all", true},
         {"Kind", false}},
        "th");
  for (const ReportVersion& version : report.versions) {
    const std::string kind = !version.error.empty() ? "damaged: " + version.error
                             : version.full         ? "full"
                                                    : "incremental";
    cells(html, {{std::to_string(version.version), true},
                 {version.step, false},
                 {version.taken_unix_ns == 0 ? "-" : local_time(version.taken_unix_ns), false},
                 {with_commas(version.processes), true},
                 {with_commas(version.pages), true},
                 {human_bytes(version.bytes), true},
                 {human_time(version.stop_ns), true},
                 {human_time(version.total_ns), true},
                 {kind, false}});
  }
  html += "</table>\n";
}

// The share of its pages that a version has written, by colour and, for readers without colours, in percent.
void heat_table(std::string& html, const Report& report) {
  html +=
      "<h2>Which memory changes</h2>\n<p class=\"quiet\">Of each mapping, the percentage of its pages that a version "
      "has "
      "written; those that changed most first.</p>\n<table class=\"heat\">\n<tr><th>Memory</th><th "
      "class=\"n\">Pages</th>";
  for (const uint32_t version : report.heat_versions) html += fmt::format("<th class=\"n\">{}</th>", version);
  html += "</tr>\n";
  for (const HeatRow& row : report.heat) {
    html += fmt::format("<tr><td>{}</td><td class=\"n\">{}</td>", escaped(row.name), with_commas(row.pages));
    for (const auto& written : row.written) {
      if (!written) {
        html += "<td></td>";
        continue;
      }
      const double share =
          row.pages == 0 ? 0 : std::min(1.0, static_cast<double>(*written) / static_cast<double>(row.pages));
      html += fmt::format("<td class=\"n\" style=\"background: rgba(207, 34, 46, {:.2f})\">{:.0f}</td>", 0.75 * share,
                          100 * share);
    }
    html += "</tr>\n";
  }
  html += "</table>\n";
}

}  // namespace

std::string report_html(const Report& report, uint64_t now_unix_ms) {
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head><meta "
      "charset=\"utf-8\"/><meta "
      "name=\"viewport\" "
      "content=\"width=device-width\"/><title>{0}</title>\n<style>{1}</style></head>\n<body>\n<h1>{0}</h1>\n"
      "<p class=\"quiet\">slurm-icp {2}, {3}</p>\n",
      escaped(report.title), kStyle, ICP_VERSION, local_time(now_unix_ms * kNsInMs));
  timeline(html, report, now_unix_ms);
  if (!report.runs.empty()) runs_table(html, report, now_unix_ms);
  if (!report.versions.empty()) {
    chart(html, report, "Time that the processes stood still", &ReportVersion::stop_ns, human_time);
    chart(html, report, "Bytes written", &ReportVersion::bytes, human_bytes);
    versions_table(html, report);
  }
  if (!report.heat.empty()) heat_table(html, report);
  html += "</body>\n</html>\n";
  return html;
}

}  // namespace icp

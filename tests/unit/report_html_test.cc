// SPDX-License-Identifier: GPL-2.0-or-later
// The page of icp report.
#include "coordinator/icp/report_html.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace icp {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kNow = 1'800'000'100'000;  // ms

size_t count_of(const std::string& text, const std::string& what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) count++;
  return count;
}

// Each element that is opened is closed in turn, as XML wants it.
bool well_formed(const std::string& html) {
  std::vector<std::string> open;
  for (size_t at = html.find('<', 1); at != std::string::npos; at = html.find('<', at + 1)) {
    const size_t end = html.find('>', at);
    if (end == std::string::npos) return false;
    const std::string tag = html.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" />", 1));
    if (tag.ends_with('/')) continue;
    if (tag[0] != '/') {
      open.push_back(name);
    } else if (open.empty() || "/" + open.back() != tag) {
      return false;
    } else {
      open.pop_back();
    }
  }
  return open.empty();
}

Report example() {
  Report report;
  report.title = "Job 12";
  for (uint32_t i = 0; i < 2; i++) {
    net::RunRecord run;
    run.set_job(12);
    run.set_restarts(i);
    run.set_began_unix_ms(kNow - 100'000 + i * 50'000);
    run.set_ended_unix_ms(i == 0 ? kNow - 60'000 : 0);
    run.set_nodes("n1");
    run.set_why(i == 0 ? "node n1 was drained" : "");
    report.runs.push_back(run);
  }
  for (uint32_t i = 1; i <= 3; i++)
    report.versions.push_back({"12.0", i, (kNow - 90'000 + i * 10'000) * 1'000'000, i * 1'000'000, i * 5'000'000,
                               i * 4096, i, 2, i == 1, ""});
  report.heat_versions = {1, 2, 3};
  report.heat.push_back({"4711 app 7f00 anonymous", 100, {100, std::nullopt, 25}});
  return report;
}

TEST(ReportHtml, RunsVersionsAndHeat) {
  const std::string html = report_html(example(), kNow);
  EXPECT_TRUE(well_formed(html)) << html;
  EXPECT_EQ(count_of(html, "class=\"run\""), 2u);
  EXPECT_EQ(count_of(html, "class=\"mark\""), 3u);
  EXPECT_EQ(count_of(html, "class=\"full\""), 2u);  // the first version, in both charts
  EXPECT_EQ(count_of(html, "class=\"bar\""), 4u);
  EXPECT_THAT(html, HasSubstr("node n1 was drained"));
  EXPECT_THAT(html, HasSubstr(">25</td>"));
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("src=")));
}

TEST(ReportHtml, NamesStayText) {
  Report report = example();
  report.title = "<script>alert(1)</script>\033[31m";
  report.runs[0].set_why("\"><b>&");
  report.heat[0].name = "/tmp/<img onerror=x>\xff";
  report.versions[0].error = "<i>";
  const std::string html = report_html(report, kNow);
  EXPECT_TRUE(well_formed(html));
  for (const char* what : {"<script", "<img", "<i>", "<b>", "\033"}) EXPECT_THAT(html, Not(HasSubstr(what)));
}

TEST(ReportHtml, NothingAndOddNumbers) {
  EXPECT_TRUE(well_formed(report_html({}, kNow)));
  Report report = example();
  report.versions = {{"", 1, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT32_MAX, true, ""},
                     {"", 2, 0, 0, 0, 0, 0, 0, false, ""}};
  report.heat[0].pages = 0;
  report.runs[0].set_began_unix_ms(UINT64_MAX / 2);
  const std::string html = report_html(report, 0);
  EXPECT_TRUE(well_formed(html));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("inf")));
}

}  // namespace
}  // namespace icp

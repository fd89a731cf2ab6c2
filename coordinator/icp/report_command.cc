// SPDX-License-Identifier: GPL-2.0-or-later
// icp report: one page about a Slurm job, or about an image.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "coordinator/icp/cli.h"
#include "coordinator/icp/job_client.h"
#include "coordinator/icp/job_operation.h"
#include "coordinator/icp/open_image.h"
#include "coordinator/icp/report.h"
#include "coordinator/icp/report_html.h"
#include "coordinator/icp/users.h"
#include "engine/base/error.h"
#include "engine/base/times.h"
#include "engine/base/unique_fd.h"
#include "engine/image/page_store.h"

namespace icp {
namespace {

constexpr uint32_t kMostVersions = 1000;
constexpr size_t kMostHeatVersions = 40, kMostHeatRows = 60;
constexpr uint64_t kPage = 4096;

struct ReportOptions {
  JobOptions job;
  std::string of, node, output;
};

Report report_of_job(const ReportOptions& options, const JobId& id) {
  const JobClient client(options.job.config);
  net::Request request = request_of(net::OP_HISTORY, id);
  const net::Reply history = client.ask(request);
  check_reply(history, "report " + options.of);
  request = request_of(net::OP_STATUS, id);
  request.set_versions(kMostVersions);
  const net::Reply status = client.ask(request);
  check_reply(status, "report " + options.of);
  Report report;
  report.title = "Job " + options.of;
  report.runs.assign(history.runs().begin(), history.runs().end());
  for (const net::StepStatus& step : status.steps()) {
    for (const net::VersionRecord& record : step.versions()) {
      const net::VersionNumbers& numbers = record.numbers();
      report.versions.push_back({job_step_text(step.job(), step.step()), numbers.version(), numbers.taken_unix_ns(),
                                 numbers.stop_ns(), numbers.total_ns(), numbers.bytes(), numbers.pages(),
                                 numbers.processes(), numbers.full(), ""});
    }
  }
  std::sort(report.versions.begin(), report.versions.end(),
            [](const auto& a, const auto& b) { return a.taken_unix_ns < b.taken_unix_ns; });
  return report;
}

struct Part {
  std::string name;
  uint64_t start = 0, end = UINT64_MAX;  // of its store
};

std::string name_of(const pb::Mapping& mapping) {
  if (!mapping.file().path().empty()) return mapping.file().path();
  if (!mapping.name().empty()) return "[anon:" + mapping.name() + "]";
  return mapping.growsdown() ? "[stack]" : "anonymous";
}

// The parts of memory of a version, by the store that has their pages.
std::map<std::string, std::vector<Part>> parts_of(const pb::Capsule& capsule) {
  std::map<std::string, std::vector<Part>> parts;
  for (const pb::Process& process : capsule.processes()) {
    if (process.memory().index().empty()) continue;
    for (const pb::Mapping& mapping : process.memory().mappings())
      parts[process.memory().index()].push_back(
          {fmt::format("{} {} {:x} {}", process.pid(), process.comm(), mapping.start(), name_of(mapping)),
           mapping.start(), mapping.end()});
  }
  for (const pb::MemoryObject& object : capsule.objects()) parts[object.index()].push_back({"shared " + object.path()});
  return parts;
}

// Pages of each part that this version has written, and all of it.
std::map<std::string, std::pair<uint64_t, uint64_t>> written_in(const VersionReader& reader) {
  std::map<std::string, std::pair<uint64_t, uint64_t>> pages;
  for (const auto& [store, parts] : parts_of(reader.read_state())) {
    PageStoreReader pages_of_store(reader, store);
    pages_of_store.index().for_each_run([&, &parts = parts](uint64_t address, uint64_t count, PageLocation location) {
      const uint64_t end = address + count * kPage;
      for (const Part& part : parts) {
        if (part.end <= address || end <= part.start) continue;
        const uint64_t inside = (std::min(end, part.end) - std::max(address, part.start)) / kPage;
        auto& [written, all] = pages[part.name];
        all += inside;
        if (location.version == reader.version()) written += inside;
      }
    });
  }
  return pages;
}

void add_heat(Report& report, const ImageDir& image) {
  std::vector<uint32_t> numbers;
  for (const ReportVersion& version : report.versions)
    if (version.error.empty()) numbers.push_back(version.version);
  if (numbers.size() > kMostHeatVersions) numbers.erase(numbers.begin(), numbers.end() - kMostHeatVersions);
  std::map<std::string, HeatRow> rows;
  for (size_t i = 0; i < numbers.size(); i++) {
    for (const auto& [name, pages] : written_in(image.open_version(numbers[i]))) {
      HeatRow& row = rows[name];
      row.name = name;
      row.pages = pages.second;
      row.written.resize(numbers.size());
      row.written[i] = pages.first;
    }
  }
  report.heat_versions = numbers;
  for (auto& [name, row] : rows) report.heat.push_back(std::move(row));
  // The first version writes everything.
  const auto total = [](const HeatRow& row) {
    uint64_t sum = 0;
    for (size_t i = 1; i < row.written.size(); i++) sum += row.written[i].value_or(0);
    return std::pair(sum, row.pages);
  };
  std::sort(report.heat.begin(), report.heat.end(), [&](const auto& a, const auto& b) { return total(a) > total(b); });
  if (report.heat.size() > kMostHeatRows) report.heat.resize(kMostHeatRows);
}

Report report_of_image(const ReportOptions& options) {
  const ImageDir image = open_image(options.of, reader_of(options.of), options.node);
  Report report;
  report.title = options.of;
  for (const VersionInfo& info : image.versions()) {
    const pb::VersionStats& stats = info.manifest.stats();
    report.versions.push_back({"", info.version, info.manifest.taken_unix_ns(), stats.stop_ns(), stats.total_ns(),
                               stats.bytes_written(), stats.pages_written(), stats.processes(), stats.full(),
                               info.error});
  }
  add_heat(report, image);
  return report;
}

// Where the page goes. Opened before any rights are given up for an image: it is the caller's file. One that is there
// keeps what it holds until there is a new page, and none is left where there is no page.
class Output {
 public:
  explicit Output(std::string name) : name_(std::move(name)) {
    constexpr mode_t kMode = 0666;
    if (name_ == "-") {
      file_.reset(::dup(STDOUT_FILENO));
    } else {
      file_.reset(::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kMode));
      made_ = file_.get() >= 0;
      if (!made_ && errno == EEXIST) file_.reset(::open(name_.c_str(), O_WRONLY | O_CLOEXEC));
    }
    if (!file_) throw_errno("cannot write {}", name_);
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  ~Output() {
    if (made_) ::unlink(name_.c_str());
  }
  void write(const std::string& text) {
    struct stat facts {};
    if (::fstat(file_.get(), &facts) != 0 ||
        (name_ != "-" && S_ISREG(facts.st_mode) && ::ftruncate(file_.get(), 0) != 0))
      throw_errno("cannot write {}", name_);
    for (size_t at = 0; at < text.size();) {
      const ssize_t put = ::write(file_.get(), text.data() + at, text.size() - at);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) throw_errno("cannot write {}", name_);
      at += static_cast<size_t>(put);
    }
    made_ = false;
  }

 private:
  std::string name_;
  UniqueFd file_;
  bool made_ = false;
};

int report(const ReportOptions& options) {
  const auto id = parse_job_id(options.of);
  Output output(options.output);
  const Report made = id && id->job != 0 ? report_of_job(options, *id) : report_of_image(options);
  output.write(report_html(made, now_unix_ms()));
  return kExitOk;
}

}  // namespace

void add_report_command(Cli& cli) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* const app = cli.app.add_subcommand("report", "Write a page about a Slurm job, or about an image");
  app->add_option("JOB|DIR", options->of, "A job, or a directory of versions (./12 for one that is named like a job)")
      ->type_name("")
      ->required();
  app->add_option("-o,--output", options->output, "The page: a file, or - for standard output")
      ->type_name("FILE")
      ->required();
  app->add_option("--node", options->node, "Of an image: the node whose capsule is meant, if there are several")
      ->type_name("NAME");
  options->job.add_config(*app);
  app->callback([&cli, options] { cli.chosen = [options] { return report(*options); }; });
}

}  // namespace icp

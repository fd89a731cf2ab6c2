// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpctld/catalog.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "engine/base/error.h"
#include "engine/base/times.h"

namespace icp {
namespace {

// NORMAL: nothing is lost when icpctld dies. When its machine does, the last seconds may be, which agents tell again
// (and a sync for each of a thousand steps that come at once would hold up everybody for as many disk seeks).
constexpr const char* kSchema = R"(
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS steps (
  job INTEGER NOT NULL, step INTEGER NOT NULL, restarts INTEGER NOT NULL, uid INTEGER NOT NULL, image BLOB NOT NULL,
  nodes INTEGER NOT NULL, interval_ms INTEGER NOT NULL, seen INTEGER NOT NULL, ended INTEGER,
  last_code INTEGER NOT NULL DEFAULT 0, last_error BLOB NOT NULL DEFAULT '',
  PRIMARY KEY (job, step, restarts)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS steps_of_user ON steps (uid, job DESC, restarts DESC, step);
CREATE TABLE IF NOT EXISTS versions (
  job INTEGER NOT NULL, step INTEGER NOT NULL, restarts INTEGER NOT NULL, version INTEGER NOT NULL,
  taken_ns INTEGER NOT NULL, stop_ns INTEGER NOT NULL, total_ns INTEGER NOT NULL, bytes INTEGER NOT NULL,
  pages INTEGER NOT NULL, processes INTEGER NOT NULL, nodes INTEGER NOT NULL, full INTEGER NOT NULL, tracker BLOB NOT NULL,
  PRIMARY KEY (job, step, restarts, version),
  FOREIGN KEY (job, step, restarts) REFERENCES steps ON DELETE CASCADE) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS disabled (
  job INTEGER NOT NULL, step INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (job, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS restart_dirs (
  job INTEGER PRIMARY KEY, restarts INTEGER NOT NULL, directory BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
  job INTEGER NOT NULL, restarts INTEGER NOT NULL, uid INTEGER NOT NULL, began_ms INTEGER NOT NULL, ended_ms INTEGER,
  nodes BLOB NOT NULL, why BLOB NOT NULL DEFAULT '', restart_failed INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (job, restarts)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS run_marks (
  job INTEGER NOT NULL, restarts INTEGER NOT NULL, held INTEGER NOT NULL DEFAULT 0, hung_ms INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (job, restarts)) WITHOUT ROWID;
)";
constexpr int64_t kWholeJob = INT64_MIN;  // as a step in `disabled`

}  // namespace

// A prepared statement with its values bound in order.
class Catalog::Statement {
 public:
  Statement(const Catalog& catalog, const char* sql) : catalog_(catalog) {
    if (sqlite3_prepare_v2(catalog.db_, sql, -1, &statement_, nullptr) != SQLITE_OK) catalog.fail("prepare a query");
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& bind(int64_t value) {
    sqlite3_bind_int64(statement_, ++bound_, value);
    return *this;
  }
  Statement& bind(const std::string& value) {
    sqlite3_bind_blob(statement_, ++bound_, value.data(), static_cast<int>(value.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& bind(const StepKey& key) { return bind(key.job).bind(key.step).bind(key.restarts); }
  Statement& bind(const RunKey& key) { return bind(key.job).bind(key.restarts); }
  // True while there is a row.
  bool next() {
    const int result = sqlite3_step(statement_);
    if (result != SQLITE_ROW && result != SQLITE_DONE) catalog_.fail("read or write");
    return result == SQLITE_ROW;
  }
  template <typename T = int64_t>
  T number(int column) const {
    return static_cast<T>(sqlite3_column_int64(statement_, column));
  }
  bool null(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
  std::string bytes(int column) const {
    const void* const data = sqlite3_column_blob(statement_, column);
    return data == nullptr ? std::string()
                           : std::string(static_cast<const char*>(data),
                                         static_cast<size_t>(sqlite3_column_bytes(statement_, column)));
  }

 private:
  const Catalog& catalog_;
  sqlite3_stmt* statement_ = nullptr;
  int bound_ = 0;
};

Catalog::Catalog(const std::string& directory) : path_(directory + "/catalog.sqlite") {
  const std::string lock = directory + "/icpctld.lock";
  lock_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_ < 0) throw_errno("cannot open {}", lock);
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int saved = errno;
    ::close(lock_);
    errno = saved;
    if (saved == EWOULDBLOCK) throw_error(ErrorKind::kBusy, "another icpctld is running: it holds {}", lock);
    throw_errno("cannot lock {}", lock);
  }
  try {
    if (sqlite3_open(path_.c_str(), &db_) != SQLITE_OK) fail("open");
    sqlite3_busy_timeout(db_, 5000);
    run(kSchema);
    // Whoever was running tells so by itself.
    run("UPDATE steps SET ended = seen WHERE ended IS NULL");
    run("UPDATE runs SET ended_ms = began_ms WHERE ended_ms IS NULL");
  } catch (...) {
    close();
    throw;
  }
}

Catalog::Catalog(std::string path, ReadOnly) : path_(std::move(path)) {
  try {
    if (sqlite3_open_v2(path_.c_str(), &db_, SQLITE_OPEN_READONLY, nullptr) != SQLITE_OK) fail("open");
    sqlite3_busy_timeout(db_, 5000);
  } catch (...) {
    close();
    throw;
  }
}

std::unique_ptr<const Catalog> Catalog::reader() const {
  return std::unique_ptr<const Catalog>(new Catalog(path_, ReadOnly{}));
}

Catalog::~Catalog() { close(); }

void Catalog::close() {
  sqlite3_close(db_);
  if (lock_ >= 0) ::close(lock_);
}

void Catalog::fail(const char* doing) const {
  throw_error(ErrorKind::kSystem, "cannot {} {}: {}", doing, path_, db_ == nullptr ? "no memory" : sqlite3_errmsg(db_));
}

void Catalog::run(const char* sql) const {
  if (sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) fail("write");
}

void Catalog::step_seen(const StepFactsRecord& step) {
  Statement(*this,
            "INSERT INTO steps (job, step, restarts, uid, image, nodes, interval_ms, seen) VALUES (?,?,?,?,?,?,?,?) "
            "ON CONFLICT DO UPDATE SET uid = excluded.uid, image = excluded.image, nodes = excluded.nodes, "
            "interval_ms = excluded.interval_ms, seen = excluded.seen, ended = NULL")
      .bind(step.key)
      .bind(step.uid)
      .bind(step.image)
      .bind(step.nodes)
      .bind(static_cast<int64_t>(step.interval_ms))
      .bind(std::time(nullptr))
      .next();
}

void Catalog::step_ended(const StepKey& key) {
  Statement(*this, "UPDATE steps SET ended = ? WHERE job = ? AND step = ? AND restarts = ?")
      .bind(std::time(nullptr))
      .bind(key)
      .next();
}

void Catalog::result(const StepKey& key, uint32_t code, const std::string& text) {
  Statement(*this, "UPDATE steps SET last_code = ?, last_error = ? WHERE job = ? AND step = ? AND restarts = ?")
      .bind(code)
      .bind(text)
      .bind(key)
      .next();
}

void Catalog::version(const StepKey& key, const net::VersionNumbers& numbers, uint32_t nodes) {
  Statement(*this, "INSERT INTO versions VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING")
      .bind(key)
      .bind(numbers.version())
      .bind(static_cast<int64_t>(numbers.taken_unix_ns()))
      .bind(static_cast<int64_t>(numbers.stop_ns()))
      .bind(static_cast<int64_t>(numbers.total_ns()))
      .bind(static_cast<int64_t>(numbers.bytes()))
      .bind(static_cast<int64_t>(numbers.pages()))
      .bind(numbers.processes())
      .bind(nodes)
      .bind(numbers.full())
      .bind(numbers.tracker())
      .next();
}

std::vector<StepFactsRecord> Catalog::steps(uint32_t job, size_t limit, std::optional<uid_t> owner,
                                            std::optional<int32_t> step_number) const {
  // Only conditions that hold for something, so that an index serves them.
  std::string sql =
      "SELECT job, step, restarts, uid, image, nodes, interval_ms, ended, last_code, last_error, "
      "(SELECT count(*) FROM versions v WHERE v.job = s.job AND v.step = s.step AND v.restarts = s.restarts) "
      "FROM steps s WHERE 1";
  if (job != 0) sql += " AND job = ?";
  if (owner) sql += " AND uid = ?";
  if (step_number) sql += " AND step = ?";
  Statement query(*this, (sql + " ORDER BY job DESC, restarts DESC, step LIMIT ?").c_str());
  if (job != 0) query.bind(job);
  if (owner) query.bind(*owner);
  if (step_number) query.bind(*step_number);
  query.bind(static_cast<int64_t>(limit));
  std::vector<StepFactsRecord> all;
  while (query.next()) {
    StepFactsRecord step;
    step.key = {query.number<uint32_t>(0), query.number<int32_t>(1), query.number<uint32_t>(2)};
    step.uid = query.number<uid_t>(3);
    step.image = query.bytes(4);
    step.nodes = query.number<uint32_t>(5);
    step.interval_ms = query.number<uint64_t>(6);
    step.running = query.null(7);
    step.last_code = query.number<uint32_t>(8);
    step.last_error = query.bytes(9);
    step.versions = query.number<uint32_t>(10);
    all.push_back(std::move(step));
  }
  return all;
}

std::vector<net::VersionRecord> Catalog::versions(const StepKey& key, size_t limit) const {
  Statement query(*this,
                  "SELECT version, taken_ns, stop_ns, total_ns, bytes, pages, processes, nodes, full, tracker "
                  "FROM versions WHERE job = ? AND step = ? AND restarts = ? ORDER BY version DESC LIMIT ?");
  query.bind(key).bind(static_cast<int64_t>(limit));
  std::vector<net::VersionRecord> all;
  while (query.next()) {
    net::VersionRecord record;
    net::VersionNumbers& numbers = *record.mutable_numbers();
    numbers.set_version(query.number<uint32_t>(0));
    numbers.set_taken_unix_ns(query.number<uint64_t>(1));
    numbers.set_stop_ns(query.number<uint64_t>(2));
    numbers.set_total_ns(query.number<uint64_t>(3));
    numbers.set_bytes(query.number<uint64_t>(4));
    numbers.set_pages(query.number<uint64_t>(5));
    numbers.set_processes(query.number<uint32_t>(6));
    record.set_nodes(query.number<uint32_t>(7));
    numbers.set_full(query.number(8) != 0);
    numbers.set_tracker(query.bytes(9));
    all.push_back(std::move(record));
  }
  return all;
}

uint32_t Catalog::disabled(uint32_t job, std::optional<int32_t> step) const {
  Statement query(*this, "SELECT count FROM disabled WHERE job = ? AND step = ?");
  query.bind(job).bind(step ? int64_t{*step} : kWholeJob);
  return query.next() ? query.number<uint32_t>(0) : 0;
}

void Catalog::set_disabled(uint32_t job, std::optional<int32_t> step, uint32_t count) {
  Statement(*this, "INSERT INTO disabled VALUES (?,?,?) ON CONFLICT DO UPDATE SET count = excluded.count")
      .bind(job)
      .bind(step ? int64_t{*step} : kWholeJob)
      .bind(count)
      .next();
}

std::string Catalog::restart_dir(uint32_t job, uint32_t restarts) const {
  Statement query(*this, "SELECT directory FROM restart_dirs WHERE job = ? AND restarts = ?");
  query.bind(job).bind(restarts);
  return query.next() ? query.bytes(0) : std::string();
}

void Catalog::set_restart_dir(uint32_t job, uint32_t restarts, const std::string& directory) {
  if (directory.empty()) {
    Statement(*this, "DELETE FROM restart_dirs WHERE job = ?").bind(job).next();
    return;
  }
  Statement(*this, "INSERT OR REPLACE INTO restart_dirs VALUES (?,?,?)")
      .bind(job)
      .bind(restarts)
      .bind(directory)
      .next();
}

void Catalog::run_seen(const RunKey& key, uid_t uid, const std::string& nodes) {
  Statement(*this,
            "INSERT INTO runs (job, restarts, uid, began_ms, nodes) VALUES (?,?,?,?,?) "
            // A vacated job that was restarted is the same run to Slurm; one that was taken for ended when icpctld
            // began is no other one.
            "ON CONFLICT DO UPDATE SET why = CASE WHEN ended_ms > began_ms THEN '' ELSE why END, ended_ms = NULL, "
            "nodes = CASE WHEN length(excluded.nodes) > 0 THEN excluded.nodes ELSE nodes END")
      .bind(key)
      .bind(uid)
      .bind(static_cast<int64_t>(now_unix_ms()))
      .bind(nodes)
      .next();
}

void Catalog::run_ended(const RunKey& key) {
  Statement(*this, "UPDATE runs SET ended_ms = ? WHERE job = ? AND restarts = ?")
      .bind(static_cast<int64_t>(now_unix_ms()))
      .bind(key)
      .next();
}

void Catalog::run_ends_because(const RunKey& key, const std::string& why, bool restart_failed) {
  Statement(*this, "UPDATE runs SET why = ?, restart_failed = ? WHERE job = ? AND restarts = ? AND length(why) = 0")
      .bind(why)
      .bind(restart_failed)
      .bind(key)
      .next();
}

void Catalog::run_held(const RunKey& key, bool held) {
  Statement(*this, held
                       ? "INSERT INTO run_marks (job, restarts, held) VALUES (?,?,1) ON CONFLICT DO UPDATE SET held = 1"
                       : "UPDATE run_marks SET held = 0 WHERE job = ? AND restarts = ?")
      .bind(key)
      .next();
}

void Catalog::run_hung(const RunKey& key, uint64_t since_unix_ms) {
  Statement(*this,
            "INSERT INTO run_marks (job, restarts, hung_ms) VALUES (?,?,?) "
            "ON CONFLICT DO UPDATE SET hung_ms = excluded.hung_ms")
      .bind(key)
      .bind(static_cast<int64_t>(since_unix_ms))
      .next();
}

std::vector<net::RunRecord> Catalog::runs(uint32_t job, size_t limit) const {
  Statement query(*this,
                  "SELECT r.restarts, r.uid, r.began_ms, r.ended_ms, r.nodes, r.why, r.restart_failed, "
                  "count(v.version), max(v.version), max(v.taken_ns), sum(v.stop_ns), sum(v.total_ns), sum(v.bytes), "
                  "m.held, m.hung_ms "
                  "FROM runs r LEFT JOIN versions v ON v.job = r.job AND v.restarts = r.restarts "
                  "LEFT JOIN run_marks m ON m.job = r.job AND m.restarts = r.restarts "
                  "WHERE r.job = ? GROUP BY r.restarts ORDER BY r.restarts DESC LIMIT ?");
  query.bind(job).bind(static_cast<int64_t>(limit));
  std::vector<net::RunRecord> all;
  while (query.next()) {
    net::RunRecord run;
    run.set_job(job);
    run.set_restarts(query.number<uint32_t>(0));
    run.set_uid(query.number<uid_t>(1));
    run.set_began_unix_ms(query.number<uint64_t>(2));
    run.set_ended_unix_ms(query.number<uint64_t>(3));
    run.set_nodes(query.bytes(4));
    run.set_why(query.bytes(5));
    run.set_restart_failed(query.number(6) != 0);
    run.set_versions(query.number<uint32_t>(7));
    run.set_last_version(query.number<uint32_t>(8));
    run.set_last_taken_unix_ns(query.number<uint64_t>(9));
    run.set_stop_ns(query.number<uint64_t>(10));
    run.set_total_ns(query.number<uint64_t>(11));
    run.set_bytes(query.number<uint64_t>(12));
    run.set_ended_with_version(query.number(13) != 0);
    run.set_hung_unix_ms(query.number<uint64_t>(14));
    all.push_back(std::move(run));
  }
  std::reverse(all.begin(), all.end());
  return all;
}

void Catalog::forget(int64_t seconds) {
  Statement(*this, "DELETE FROM steps WHERE ended < ?").bind(std::time(nullptr) - seconds).next();
  run("DELETE FROM disabled WHERE count = 0 OR job NOT IN (SELECT job FROM steps)");
  run("DELETE FROM restart_dirs WHERE job NOT IN (SELECT job FROM steps)");
  run("DELETE FROM runs WHERE job NOT IN (SELECT job FROM steps)");
  run("DELETE FROM run_marks WHERE job NOT IN (SELECT job FROM steps)");
}

}  // namespace icp

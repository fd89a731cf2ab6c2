// SPDX-License-Identifier: GPL-2.0-or-later
// Children whose memory is captured, version by version, and compared with what it was at the stop.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/image/image_dir.h"
#include "engine/image/page_store.h"
#include "engine/memory/memory_capture.h"
#include "engine/memory/shared_pages.h"
#include "engine/process/stopped_tree.h"
#include "engine/sysv/sysv_ipc.h"
#include "engine/trace/remote_addr.h"
#include "engine/tracker/page_tracker.h"
#include "tests/unit/image_test_support.h"

namespace icp::test {

// As part of the name of a test.
inline std::string test_name(TrackerKind kind) {
  std::string name(to_string(kind));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

// A child that does what it is told: `act` runs in the child for each number sent.
class TestChild {
 public:
  explicit TestChild(const std::function<void(uint64_t)>& act) {
    start_child([&](int commands, int replies) { serve(commands, replies, act); });
  }
  // The same as a fresh, small process: this very program, started again with `variable` set to `value`; it must call
  // serve_if_told() before its main().
  TestChild(const char* variable, const std::string& value) {
    start_child([&](int commands, int replies) {
      ::dup2(commands, kCommands);
      ::dup2(replies, kReplies);
      ::setenv(variable, value.c_str(), 1);
      ::execl("/proc/self/exe", "child", nullptr);
    });
  }
  // In the fresh process: serves until the parent is gone.
  static void serve_if_told(const char* variable, const std::function<void(uint64_t, uint64_t)>& act) {
    const char* value = std::getenv(variable);
    if (value == nullptr) return;
    const uint64_t number = std::strtoull(value, nullptr, 10);
    serve(kCommands, kReplies, [&](uint64_t command) { act(number, command); });
    ::_exit(0);
  }
  ~TestChild() {
    std::vector<ProcessRef> all = find_processes({pid_});
    for (auto it = all.rbegin(); it != all.rend(); ++it) ::kill(it->pid, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  TestChild(const TestChild&) = delete;
  TestChild& operator=(const TestChild&) = delete;

  pid_t pid() const { return pid_; }
  void start(uint64_t number) {
    if (::write(to_.get(), &number, sizeof number) != sizeof number) throw_errno("write to child");
    ++pending_;
  }
  // False when the child has died.
  bool wait() {
    for (; pending_ > 0; --pending_) {
      uint64_t number = 0;
      if (::read(from_.get(), &number, sizeof number) != sizeof number) return false;
    }
    return true;
  }
  bool run(uint64_t number) {
    start(number);
    return wait();
  }

 private:
  static constexpr int kCommands = 100, kReplies = 101;

  static void serve(int commands, int replies, const std::function<void(uint64_t)>& act) {
    uint64_t number = 0;
    while (::read(commands, &number, sizeof number) == sizeof number) {
      act(number);
      if (::write(replies, &number, sizeof number) != sizeof number) break;
    }
  }
  void start_child(const std::function<void(int, int)>& body) {
    int to[2], from[2];
    if (::pipe2(to, O_CLOEXEC) != 0 || ::pipe2(from, O_CLOEXEC) != 0) throw_errno("pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close(to[1]);
      ::close(from[0]);
      body(to[0], from[1]);
      ::_exit(0);
    }
    ::close(to[0]);
    ::close(from[1]);
    to_.reset(to[1]);
    from_.reset(from[0]);
  }

  pid_t pid_ = -1;
  int pending_ = 0;
  UniqueFd to_, from_;
};

// The content of a mapping at the stop; pages that could not be read are missing.
using PageContents = std::map<uint64_t, std::vector<std::byte>>;

inline PageContents read_memory(pid_t pid, uint64_t start, uint64_t end) {
  PageContents pages;
  const UniqueFd mem(::open(fmt::format("/proc/{}/mem", pid).c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::byte> page(kPageSize);
  for (; start < end; start += kPageSize) {
    if (::pread(mem.get(), page.data(), page.size(), static_cast<off_t>(start)) != static_cast<ssize_t>(page.size())) {
      continue;
    }
    pages[start] = page;
  }
  return pages;
}

// Takes versions of one child's tree and compares each with the memory at its stop.
class CaptureRig {
 public:
  explicit CaptureRig(pid_t root, MemoryOptions options = {})
      : root_(root), capture_(std::move(options)), image_(ImageDir::create(dir_ / "image", own_identity(), "node")) {}

  // `during` runs while the processes run, between two pre-copies; `at_stop` when all are stopped.
  void take(const std::function<void()>& during = {}, const std::function<void()>& at_stop = {}) {
    Findings findings;
    capture_.check(find_processes({root_}), findings);
    VersionWriter writer = image_.begin_version();
    capture_.begin(writer);
    track_new();
    if (precopy) capture_.precopy(find_processes({root_}));
    if (during) during();
    if (precopy && during) capture_.precopy(find_processes({root_}));
    if (before_stop) before_stop();
    {
      const std::unique_ptr<StoppedTree> tree = stop_all();
      collect(*tree, at_stop);
    }
    stats = capture_.write();
    writer.commit({});
    version = writer.version();
    if (verify) compare();
  }

  void abandon_one() {
    VersionWriter writer = image_.begin_version();
    capture_.begin(writer);
    track_new();
    if (precopy) capture_.precopy(find_processes({root_}));
    {
      const std::unique_ptr<StoppedTree> tree = stop_all();
      collect(*tree, {});
    }
    capture_.abandon();
  }

  bool precopy = true;
  bool verify = true;
  std::function<void()> before_stop;               // after the last pre-copy
  std::function<void(MemoryCapture&)> note_files;  // at the stop: object_of_file() of what the processes have open
  uint64_t stop_ns = 0;                            // of collect alone
  uint32_t version = 0;
  MemoryStats stats;
  pb::Capsule capsule;
  std::string difference;  // the first one found, empty when equal

  const ImageDir& image() const { return image_; }

 private:
  struct Reference {
    pb::Process* process;
    std::vector<PageContents> mappings;  // one a mapping of the process
  };

  // A process that ends at this very moment can be neither stopped nor reported as a zombie yet.
  std::unique_ptr<StoppedTree> stop_all() {
    for (int tries = 0;; ++tries) {
      try {
        return std::make_unique<StoppedTree>(std::vector<pid_t>{root_}, calls_);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kBusy || tries > 100) throw;
        ::usleep(1000);
      }
    }
  }

  void track_new() {
    for (const ProcessRef& ref : find_processes({root_})) {
      if (!capture_.needs_tracker(ref)) continue;
      try {
        StoppedProcess process = stop_process(ref, calls_);
        capture_.track(process);
        resume_process(process);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kGone && error.kind() != ErrorKind::kBusy) throw;
      }
    }
  }

  void collect(StoppedTree& tree, const std::function<void()>& at_stop) {
    capsule.Clear();
    references_.clear();
    std::vector<pb::Process*> states;
    for (size_t i = 0; i < tree.processes().size(); ++i) capsule.add_processes();
    for (pb::Process& state : *capsule.mutable_processes()) states.push_back(&state);
    SysvScope scope;
    scope.attached_ids = segments;
    scope.uid = ::getuid();
    if (!segments.empty()) capture_sysv(select_objects(scope), *capsule.mutable_sysv());
    if (note_files) note_files(capture_);
    timespec from{}, to{};
    ::clock_gettime(CLOCK_MONOTONIC, &from);
    capture_.collect(tree.processes(), states, capsule);
    ::clock_gettime(CLOCK_MONOTONIC, &to);
    stop_ns = static_cast<uint64_t>((to.tv_sec - from.tv_sec) * 1'000'000'000ll + to.tv_nsec - from.tv_nsec);
    if (at_stop) at_stop();
    if (!verify) return;
    for (size_t i = 0; i < states.size(); ++i) {
      if (tree.processes()[i].ref.zombie) continue;
      Reference reference{states[i], {}};
      for (const pb::Mapping& mapping : states[i]->memory().mappings()) {
        reference.mappings.push_back(worth_comparing(mapping)
                                         ? read_memory(tree.processes()[i].ref.pid, mapping.start(), mapping.end())
                                         : PageContents());
      }
      references_.push_back(std::move(reference));
    }
  }

  static bool worth_comparing(const pb::Mapping& mapping) {
    if (mapping.end() - mapping.start() > 256u << 20) return false;
    if (mapping.kind() == pb::Mapping::FILE_PRIVATE)
      return (mapping.prot() & PROT_WRITE) != 0 || mapping.start() >> 40 == 0x20;
    return mapping.kind() == pb::Mapping::ANONYMOUS || mapping.kind() == pb::Mapping::OBJECT ||
           mapping.kind() == pb::Mapping::OBJECT_PRIVATE;
  }

  void compare() {
    difference.clear();
    const VersionReader reader = image_.open_version(version);
    std::map<uint32_t, std::map<uint64_t, std::vector<std::byte>>> objects;
    for (const pb::MemoryObject& object : capsule.objects()) objects[object.id()] = read_store(reader, object.index());
    for (const Reference& reference : references_) {
      PageContents store = read_store(reader, reference.process->memory().index());
      add_shared_pages(reader, reference.process->memory(), store);
      uint64_t described = 0;
      for (int i = 0; i < reference.process->memory().mappings_size(); ++i) {
        const pb::Mapping& mapping = reference.process->memory().mappings(i);
        described +=
            static_cast<uint64_t>(std::distance(store.lower_bound(mapping.start()), store.lower_bound(mapping.end())));
        compare_mapping(mapping, reference.mappings[static_cast<size_t>(i)], store, objects);
      }
      if (described != store.size()) note("the store holds pages outside of all mappings");
    }
  }

  // What the process shares with relatives.
  void add_shared_pages(const VersionReader& reader, const pb::AddressSpace& memory, PageContents& store) {
    if (memory.shared_index().empty()) return;
    const PageContents family = read_store(reader, memory.shared_index());
    for (const Range& range : shared_pages_of(memory)) {
      for (uint64_t at = range.start; at < range.end; at += kPageSize) {
        const auto page = family.find(at);
        if (page == family.end()) return note(fmt::format("shared page {:x} is not in its store", at));
        if (!store.insert(*page).second) return note(fmt::format("page {:x} is in two stores", at));
      }
    }
  }

  void note(const std::string& text) {
    if (difference.empty()) difference = text;
  }

  void compare_mapping(const pb::Mapping& mapping, const PageContents& pages, const PageContents& store,
                       std::map<uint32_t, PageContents>& objects) {
    const UniqueFd file(
        mapping.has_file() && !pages.empty() ? ::open(mapping.file().path().c_str(), O_RDONLY | O_CLOEXEC) : -1);
    for (const auto& [address, content] : pages) {
      std::vector<std::byte> expected(kPageSize);
      const uint64_t offset = address - mapping.start() + mapping.offset();
      const auto own = store.find(address);
      if (own != store.end()) {
        expected = own->second;
      } else if (mapping.object() != 0) {
        const auto page = objects[mapping.object()].find(offset);
        if (page != objects[mapping.object()].end()) expected = page->second;
      } else if (mapping.kind() == pb::Mapping::FILE_PRIVATE) {
        if (::pread(file.get(), expected.data(), kPageSize, static_cast<off_t>(offset)) < 0) continue;
      }
      if (std::memcmp(expected.data(), content.data(), kPageSize) == 0) continue;
      note(fmt::format("version {}: page {:x} of the mapping {:x}-{:x} kind {} prot {} ({}) differs, {} in the store",
                       version, address, mapping.start(), mapping.end(), static_cast<int>(mapping.kind()),
                       mapping.prot(), mapping.name(), own != store.end() ? "" : "not"));
      return;
    }
  }

  pid_t root_;
  TempDir dir_;
  MemoryCapture capture_;
  InterruptedCalls calls_;
  ImageDir image_;
  std::vector<Reference> references_;

 public:
  std::set<int> segments;  // System V segments that belong to the capsule
};

}  // namespace icp::test

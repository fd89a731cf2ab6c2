// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/engine/kernel_view.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/ioprio.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "engine/base/unique_fd.h"

namespace icp::test {
namespace {

const std::set<std::string> kStatus = {"Name",
                                       "Umask",
                                       "State",
                                       "Uid",
                                       "Gid",
                                       "Groups",
                                       "NStgid",
                                       "NSpid",
                                       "NSpgid",
                                       "NSsid",
                                       "Kthread",
                                       "VmLck",
                                       "Threads",
                                       "SigPnd",
                                       "ShdPnd",
                                       "SigBlk",
                                       "SigIgn",
                                       "SigCgt",
                                       "CapInh",
                                       "CapPrm",
                                       "CapEff",
                                       "CapBnd",
                                       "CapAmb",
                                       "Seccomp",
                                       "Seccomp_filters",
                                       "Speculation_Store_Bypass",
                                       "SpeculationIndirectBranch",
                                       "Cpus_allowed",
                                       "Mems_allowed",
                                       "x86_Thread_features",
                                       "x86_Thread_features_locked",
                                       "CoreDumping",
                                       "THP_enabled",
                                       "untag_mask"};
// Left out, though it is in status: NoNewPrivs, which a restored process of an ordinary user has; what counts what has
// happened (Vm..., SigQ, ..._ctxt_switches); numbers in the namespaces of others (Pid, PPid, Tgid).

// Of smaps: sd and uw, uffd: trackers. ac: a mapping whose protection is final at once is accounted otherwise. mw, me:
// may be written, executed, which depends on how a file was opened by us.
const std::set<std::string> kFlagsOfOthers = {"sd", "uw", "um", "ui", "ac", "mw", "me", "mr", "nl"};

const std::vector<std::string> kFiles = {
    "comm",      "cmdline", "environ", "personality", "coredump_filter", "oom_score_adj", "loginuid",
    "sessionid", "uid_map", "gid_map", "setgroups",   "timerslack_ns",   "limits"};

// Without root (docs/security.md): a restart is in a user namespace, of which these tell, and shared anonymous memory
// is a memfd.
const std::set<std::string> kOfUserNamespace = {"uid_map", "gid_map", "setgroups", "timerslack_ns"};
bool without_root() { return std::getenv("ICP_WITHOUT_ROOT") != nullptr; }

// Of fdinfo: numbers of mounts and inodes, and times that go on.
const std::set<std::string> kInfoOfOthers = {"mnt_id", "ino", "it_value", "eventfd-id", "Pid", "NSpid", "scm_fds"};

// SOL_SOCKET: counters, times, what the kernel finds out by itself, what only sets.
const std::set<int> kSocketOfOthers = {SO_ERROR,
                                       28 /* SO_PEERNAME */,
                                       56 /* SO_INCOMING_NAPI_ID */,
                                       55 /* SO_MEMINFO */,
                                       57 /* SO_COOKIE */,
                                       49 /* SO_INCOMING_CPU */,
                                       72 /* SO_BUF_LOCK: their sizes are set again */,
                                       17 /* SO_PEERCRED */,
                                       59 /* SO_PEERGROUPS */,
                                       77 /* SO_PEERPIDFD */,
                                       71 /* SO_NETNS_COOKIE */};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string read_link(const std::string& path) {
  std::array<char, 4096> target{};
  const ssize_t length = ::readlink(path.c_str(), target.data(), target.size() - 1);
  return length < 0 ? "" : std::string(target.data(), static_cast<size_t>(length));
}

std::vector<int> numbers_in(const std::string& directory) {
  std::vector<int> found;
  DIR* const open = ::opendir(directory.c_str());
  if (open == nullptr) return found;
  while (const dirent* entry = ::readdir(open)) {
    if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') found.push_back(std::stoi(entry->d_name));
  }
  ::closedir(open);
  std::sort(found.begin(), found.end());
  return found;
}

std::string last_word(const std::string& text) {
  std::istringstream words(text);
  std::string word;
  while (words >> word) continue;
  return word;
}

std::string hex(const void* data, size_t bytes) {
  std::string text;
  char digits[3];
  for (size_t i = 0; i < bytes; ++i) {
    std::snprintf(digits, sizeof digits, "%02x", static_cast<const unsigned char*>(data)[i]);
    text += digits;
  }
  return text;
}

// Numbers of pipes, sockets and memory files are the kernel's choice; a removed file has no name afterwards.
std::string without_inode(const std::string& target) {
  if (target.ends_with(" (deleted)") && !target.starts_with("/memfd:") && !target.starts_with("/SYSV") &&
      !target.starts_with("/dev/zero"))
    return "a removed file";
  if (target.starts_with("/memfd:") || target.starts_with("/dev/zero") || target.starts_with("/SYSV"))
    return target.substr(0, target.find(' '));
  const bool numbered = target.starts_with("pipe:[") || target.starts_with("socket:[");
  return numbered ? target.substr(0, target.find('[')) : target;
}

class Looker {
 public:
  explicit Looker(KernelView& view) : view_(view) {}

  void look_at(pid_t pid) {
    const std::string proc = "/proc/" + std::to_string(pid);
    const std::string own = status_of(proc + "/status", "NStgid");
    if (own.empty() || own == "0") return;
    name_ = "process " + own + ": ";
    look_at_status(proc + "/status");
    if (view_[name_ + "status: State"].starts_with("Z")) return keep_of_zombie();
    for (const std::string& file : kFiles)
      if (!without_root() || !kOfUserNamespace.contains(file)) view_[name_ + file] = read_file(proc + "/" + file);
    const std::string auxv = read_file(proc + "/auxv");
    view_[name_ + "auxv"] = hex(auxv.data(), auxv.size());
    for (const char* link : {"cwd", "root", "exe"}) view_[name_ + link] = read_link(proc + "/" + link);
    look_at_stat(proc + "/stat");
    look_at_timers(proc + "/timers");
    look_at_mappings(proc + "/smaps");
    look_at_descriptors(pid, proc);
    for (const int tid : numbers_in(proc + "/task")) look_at_thread(proc, tid, own);
  }

 private:
  static std::string status_of(const std::string& path, const std::string& key) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);)
      if (line.starts_with(key + ":")) return last_word(line);
    return "";
  }

  // Nothing else of it can be seen by anybody but in /proc.
  void keep_of_zombie() {
    const std::set<std::string> kept = {"Name", "State", "Uid", "Gid", "NStgid", "NSpid", "NSpgid", "NSsid"};
    const std::string status = name_ + "status: ";
    std::erase_if(view_, [&](const auto& entry) {
      return entry.first.starts_with(status) && !kept.contains(entry.first.substr(status.size()));
    });
  }

  void look_at_status(const std::string& path) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
      const size_t colon = line.find(':');
      const std::string key = line.substr(0, colon);
      if (!kStatus.contains(key)) continue;
      const std::string value = line.substr(colon + 2);
      if (key == "State") {
        // Running or sleeping: what it was doing at this moment.
        view_[name_ + "status: State"] = value[0] == 'T' || value[0] == 'Z' ? value : "lives";
      } else if (key == "SigPnd" || key == "ShdPnd") {
        // A stop that is on its way: the process comes back as a stopped one.
        constexpr uint64_t kStop = 1ull << (SIGSTOP - 1);
        view_[name_ + "status: " + key] = std::to_string(std::stoull(value, nullptr, 16) & ~kStop);
      } else {
        view_[name_ + "status: " + key] = key.starts_with("NS") ? last_word(value) : value;
      }
    }
  }

  // Numbers as in proc(5).
  void look_at_stat(const std::string& path) {
    const std::string text = read_file(path);
    std::istringstream words(text.substr(text.rfind(')') + 1));
    std::vector<std::string> field(3);
    for (std::string word; words >> word;) field.push_back(word);
    for (const int number : {18, 19, 26, 27, 28, 38, 40, 41, 45, 46, 47, 48, 49, 50, 51})
      view_[name_ + "stat: " + std::to_string(number)] = field.at(static_cast<size_t>(number));
  }

  // "notify: signal/pid.1234": the number is that of another namespace.
  void look_at_timers(const std::string& path) {
    std::ifstream file(path);
    std::vector<std::string> lines;
    std::string id;
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with("ID:")) id = line;
      view_[name_ + "timer " + id + " " + line.substr(0, line.find(':'))] = line.substr(0, line.find('.'));
    }
  }

  void look_at_mappings(const std::string& path) {
    struct Mapping {
      unsigned long start, end, offset;
      std::string text, flags;
    };
    std::vector<Mapping> mappings;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
      unsigned long start = 0, end = 0, offset = 0;
      char protection[8] = "";
      if (std::sscanf(line.c_str(), "%lx-%lx %7s %lx ", &start, &end, protection, &offset) == 4) {
        std::istringstream words(line);
        std::string word, name;
        words >> word >> word >> word >> word >> word;
        std::getline(words >> std::ws, name);
        if (without_root() && (name.starts_with("/dev/zero") || name.starts_with("/memfd:shared")))
          name = "/dev/zero (deleted)";
        mappings.push_back(
            {start, end, name.starts_with('/') ? offset : start, protection + (" " + without_inode(name)), ""});
      } else if (line.starts_with("VmFlags:")) {
        std::istringstream words(line.substr(8));
        for (std::string flag; words >> flag;)
          if (!kFlagsOfOthers.contains(flag)) mappings.back().flags += " " + flag;
      } else if (line.starts_with("ProtectionKey:")) {
        mappings.back().text += " key " + last_word(line);
      }
    }
    // Neighbours that could be one: whether they are depends on what came first, the protection or a page.
    std::vector<Mapping> merged;
    for (const Mapping& mapping : mappings) {
      const bool follows = !merged.empty() && merged.back().end == mapping.start &&
                           merged.back().text == mapping.text && merged.back().flags == mapping.flags &&
                           merged.back().offset + (mapping.start - merged.back().start) == mapping.offset;
      if (follows)
        merged.back().end = mapping.end;
      else
        merged.push_back(mapping);
    }
    for (const Mapping& mapping : merged) {
      std::ostringstream what;
      what << name_ << "mapping " << std::hex << mapping.start << "-" << mapping.end;
      std::ostringstream value;
      value << mapping.text << " from " << std::hex << mapping.offset << mapping.flags;
      view_[what.str()] = value.str();
    }
  }

  void look_at_descriptors(pid_t pid, const std::string& proc) {
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    for (const int fd : numbers_in(proc + "/fd")) {
      const std::string name = name_ + "descriptor " + std::to_string(fd);
      // Those of the test itself are new ones after a restart.
      if (fd <= 2) continue;
      const std::string target = read_link(proc + "/fd/" + std::to_string(fd));
      view_[name] = without_inode(target);
      std::ifstream info(proc + "/fdinfo/" + std::to_string(fd));
      size_t number = 0;
      for (std::string line; std::getline(info, line);) {
        const std::string key = line.substr(0, line.find(':'));
        if (kInfoOfOthers.contains(key)) continue;
        // A pipe opened again by its name in /proc has O_LARGEFILE.
        if (key == "flags") line = std::to_string(std::stoul(line.substr(6), nullptr, 8) & ~0100000ul);
        if (key == "tfd") line = line.substr(0, line.find(" pos:"));
        if (key == "lock")
          line = line.substr(
              0, line.find(" ", line.find("WRITE") == std::string::npos ? line.find("READ") : line.find("WRITE")));
        view_[name + " " + key + (key == "tfd" || key == "lock" ? " " + std::to_string(number++) : "")] = line;
      }
      if (target.starts_with("socket:"))
        look_at_socket(UniqueFd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), fd, 0))), name);
    }
  }

  void look_at_socket(const UniqueFd& socket, const std::string& name) {
    int family = 0, protocol = 0;
    socklen_t size = sizeof family;
    if (!socket || ::getsockopt(socket.get(), SOL_SOCKET, SO_DOMAIN, &family, &size) != 0) return;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_PROTOCOL, &protocol, &size);
    look_at_options(socket.get(), SOL_SOCKET, 90, name);
    // The kernel tunes a connection's buffers, and knows its path; multicast is nothing to it. TCP_NODELAY is set on
    // ended connections.
    const bool tcp = protocol == IPPROTO_TCP;
    if (tcp) {
      for (const int option : {SO_SNDBUF, SO_RCVBUF}) view_.erase(name_of_option(name, SOL_SOCKET, option));
      for (const int option : {TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT, TCP_CORK})
        look_at_options(socket.get(), IPPROTO_TCP, option + 1, name, option);
      return;
    }
    if (family == AF_INET || family == AF_INET6) look_at_options(socket.get(), IPPROTO_IP, 52, name);
    if (family == AF_INET6) look_at_options(socket.get(), IPPROTO_IPV6, 90, name);
  }

  static std::string name_of_option(const std::string& name, int level, int option) {
    return name + " option " + std::to_string(level) + " " + std::to_string(option);
  }

  void look_at_options(int socket, int level, int end, const std::string& name, int first = 1) {
    for (int option = first; option < end; ++option) {
      if (level == SOL_SOCKET && kSocketOfOthers.contains(option)) continue;
      std::array<char, 256> value{};
      socklen_t size = value.size();
      if (::getsockopt(socket, level, option, value.data(), &size) != 0) continue;
      view_[name_of_option(name, level, option)] = hex(value.data(), size);
    }
  }

  void look_at_thread(const std::string& proc, int tid, const std::string& process) {
    const std::string task = proc + "/task/" + std::to_string(tid);
    const std::string own = status_of(task + "/status", "NSpid");
    if (own.empty() || own == "0") return;
    const std::string saved = name_;
    name_ = "process " + process + ": thread " + own + ": ";
    view_[name_ + "comm"] = read_file(task + "/comm");
    for (const char* link : {"cwd", "root"}) view_[name_ + link] = read_link(task + "/" + link);
    if (own != process) look_at_status(task + "/status");
    struct {
      uint32_t size, policy;
      uint64_t flags;
      int32_t nice;
      uint32_t priority;
      uint64_t runtime, deadline, period;
    } attributes{};
    if (::syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0) == 0)
      view_[name_ + "sched_getattr"] = hex(&attributes, sizeof attributes);
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    if (::sched_getaffinity(tid, sizeof cpus, &cpus) == 0) view_[name_ + "affinity"] = hex(&cpus, sizeof cpus);
    view_[name_ + "ioprio"] = std::to_string(::syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid));
    void* head = nullptr;
    size_t length = 0;
    if (::syscall(SYS_get_robust_list, tid, &head, &length) == 0)
      view_[name_ + "robust list"] = hex(&head, sizeof head) + " " + std::to_string(length);
    name_ = saved;
  }

  KernelView& view_;
  std::string name_;
};

void look_below(pid_t pid, Looker& looker) {
  looker.look_at(pid);
  const std::string proc = "/proc/" + std::to_string(pid) + "/task";
  for (const int tid : numbers_in(proc)) {
    std::ifstream children(proc + "/" + std::to_string(tid) + "/children");
    for (pid_t child = 0; children >> child;) look_below(child, looker);
  }
}

}  // namespace

KernelView view_of_tree(pid_t root) {
  KernelView view;
  Looker looker(view);
  look_below(root, looker);
  return view;
}

KernelView view_of_self() {
  KernelView view;
  view["thread"] = std::to_string(::syscall(SYS_gettid));
  // PR_SET_NO_NEW_PRIVS is left out: a restored process of an ordinary user has it.
  struct {
    const char* name;
    int option;
    bool in_memory;
  } constexpr kOptions[] = {{"PR_GET_PDEATHSIG", PR_GET_PDEATHSIG, true},
                            {"PR_GET_DUMPABLE", PR_GET_DUMPABLE, false},
                            {"PR_GET_KEEPCAPS", PR_GET_KEEPCAPS, false},
                            {"PR_GET_TIMING", PR_GET_TIMING, false},
                            {"PR_GET_SECCOMP", PR_GET_SECCOMP, false},
                            {"PR_GET_TSC", PR_GET_TSC, true},
                            {"PR_GET_SECUREBITS", PR_GET_SECUREBITS, false},
                            {"PR_GET_TIMERSLACK", PR_GET_TIMERSLACK, false},
                            {"PR_MCE_KILL_GET", PR_MCE_KILL_GET, false},
                            {"PR_GET_CHILD_SUBREAPER", PR_GET_CHILD_SUBREAPER, true},
                            {"PR_GET_TID_ADDRESS", PR_GET_TID_ADDRESS, true},
                            {"PR_GET_THP_DISABLE", PR_GET_THP_DISABLE, false},
                            {"PR_GET_IO_FLUSHER", 58, false},
                            {"PR_GET_MDWE", 66, false},
                            {"PR_GET_MEMORY_MERGE", 68, false}};
  for (const auto& option : kOptions) {
    uint64_t value = 0;
    const int result = option.in_memory ? ::prctl(option.option, &value, 0, 0, 0) : ::prctl(option.option, 0, 0, 0, 0);
    view[option.name] = std::to_string(result) + " " + std::to_string(value);
  }
  for (int which = 0; which < 3; ++which)
    view["PR_GET_SPECULATION_CTRL " + std::to_string(which)] = std::to_string(::prctl(52, which, 0, 0, 0));
  for (int which = 0; which < 3; ++which) {
    itimerval time{};
    ::getitimer(static_cast<__itimer_which>(which), &time);
    view["getitimer " + std::to_string(which)] = hex(&time.it_interval, sizeof time.it_interval);
  }
  stack_t stack{};
  ::sigaltstack(nullptr, &stack);
  view["sigaltstack"] = hex(&stack.ss_sp, sizeof stack.ss_sp) + " " + std::to_string(stack.ss_size);
  for (int signal = 1; signal <= 64; ++signal) {
    std::array<uint64_t, 4> action{};
    if (::syscall(SYS_rt_sigaction, signal, nullptr, action.data(), 8) != 0) continue;
    // Flags of a default action mean nothing, but two of SIGCHLD.
    const uint64_t counts = signal == SIGCHLD ? action[1] & (SA_NOCLDSTOP | SA_NOCLDWAIT) : 0;
    if (action[0] == 0) action = {0, counts, 0, 0};
    view["rt_sigaction " + std::to_string(signal)] = hex(action.data(), sizeof action);
  }
  view["personality"] = std::to_string(::personality(0xffffffff));
  view["membarrier"] = std::to_string(::syscall(SYS_membarrier, 1 << 9, 0, 0));
  int mode = 0;
  std::array<uint64_t, 16> nodes{};
  ::syscall(SYS_get_mempolicy, &mode, nodes.data(), 1024, 0, 0);
  view["get_mempolicy"] = std::to_string(mode) + " " + hex(nodes.data(), sizeof nodes);
  view["getpriority"] = std::to_string(::getpriority(PRIO_PROCESS, 0));
  std::array<gid_t, 128> groups{};
  const int count = ::getgroups(groups.size(), groups.data());
  view["getgroups"] =
      std::to_string(count) + " " + hex(groups.data(), static_cast<size_t>(std::max(count, 0)) * sizeof(gid_t));
  return view;
}

std::vector<std::string> differences(const KernelView& before, const KernelView& after, size_t most) {
  std::vector<std::string> lines;
  const auto add = [&](const std::string& what, const std::string& was, const std::string& is) {
    if (lines.size() < most) lines.push_back(what + ": " + was + " -> " + is);
  };
  for (const auto& [what, was] : before) {
    const auto now = after.find(what);
    if (now == after.end()) {
      add(what, was, "(nothing)");
    } else if (now->second != was) {
      add(what, was, now->second);
    }
  }
  for (const auto& [what, is] : after)
    if (!before.contains(what)) add(what, "(nothing)", is);
  return lines;
}

}  // namespace icp::test

// SPDX-License-Identifier: GPL-2.0-or-later
// A worker that its user has taken over asks the broker for what the user could not do.
#include <fcntl.h>
#include <grp.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <thread>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/socket_pair.h"
#include "engine/broker/broker.h"
#include "engine/files/inet_address.h"
#include "engine/files/socket_option.h"
#include "roundtrip.h"

namespace icp::test {
namespace {

constexpr uid_t kUser = 65534, kOther = 1;

void become(uid_t uid) {
  if (::setgroups(0, nullptr) != 0 || ::setresgid(uid, uid, uid) != 0 || ::setresuid(uid, uid, uid) != 0) ::_exit(99);
  ::prctl(PR_SET_DUMPABLE, 1);
}

// A process of another program, which ends with this object.
class Other {
 public:
  explicit Other(const std::function<void()>& begin) {
    SocketPair ready(SOCK_STREAM);
    pid_ = ::fork();
    if (pid_ == 0) {
      begin();
      ::send(ready.there.get(), "r", 1, MSG_NOSIGNAL);
      for (;;) ::pause();
    }
    char byte;
    EXPECT_EQ(::recv(ready.here.get(), &byte, 1, 0), 1);
  }
  ~Other() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

// As a step's agent has it, but for cgroups: one process is not of the job, and it is told by which number a process
// would be put somewhere that has another one in this PID namespace.
pid_t g_not_of_job = 0;
std::function<void(pid_t)> places_of_step(pid_t pid, pid_t like) {
  if (like == g_not_of_job) throw_error(ErrorKind::kPermission, "process {} is not of the job", like);
  return [pid](pid_t number) {
    if (number != pid) throw_error(ErrorKind::kSystem, "put there by the number {}", number);
  };
}

// Runs `attack` in a worker of the user's that has a broker, and returns what it returns.
std::string in_worker(const std::function<std::string()>& attack, const std::function<bool()>& over = nullptr) {
  SocketPair said(SOCK_STREAM);
  const pid_t pid = ::fork();
  if (pid == 0) {
    std::string text;
    try {
      BrokerOptions options;
      options.identity = {kUser, kUser, {}};
      options.init_program = ICP_INIT_PATH;
      options.not_for_broker = {said.here.get(), said.there.get()};
      options.join = places_of_step;
      options.over = over;
      become_worker(std::move(options));
      text = attack();
    } catch (const Error& error) {
      text = std::string("error: ") + error.what();
    }
    ::send(said.there.get(), text.data(), text.size(), MSG_NOSIGNAL);
    ::_exit(0);
  }
  said.there.reset();
  std::string text(4096, '\0');
  const ssize_t got = ::recv(said.here.get(), text.data(), text.size(), MSG_WAITALL);
  ::waitpid(pid, nullptr, 0);
  text.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return text;
}

class HostileWorker : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root, whose broker it is";
  }
};

std::string start_init(pid_t like, const std::function<void(pid_t)>& use = nullptr) {
  SocketPair channel(SOCK_SEQPACKET), carrier(SOCK_SEQPACKET);
  const pid_t pid = broker().start_init("", channel.there.get(), carrier.there.get(), like, {kUser, kUser, {}}, false);
  if (use) use(pid);
  return "started";
}

TEST_F(HostileWorker, HasNoInitOutsideOfItsStep) {
  EXPECT_THAT(in_worker([] { return start_init(0); }), ::testing::HasSubstr("in no step"));
}

TEST_F(HostileWorker, HasNoPartInProcessesThatTheUserMayNotTrace) {
  const Other others([] { become(kOther); });
  const Other group([] {  // the user's, with another group's rights
    if (::setresgid(42, 42, 42) != 0) ::_exit(99);
    if (::setresuid(kUser, kUser, kUser) != 0) ::_exit(99);
    ::prctl(PR_SET_DUMPABLE, 1);
  });
  const Other capable([] {  // with a capability
    ::prctl(PR_SET_KEEPCAPS, 1);
    become(kUser);
  });
  for (const pid_t pid : {others.pid(), group.pid(), capable.pid(), 1}) {
    EXPECT_THAT(in_worker([pid] { return start_init(pid); }), ::testing::HasSubstr("may look into"));
    EXPECT_THAT(in_worker([pid] { return broker().open_ipc(pid), std::string("open"); }),
                ::testing::HasSubstr("may look into"));
    EXPECT_THAT(in_worker([pid] { return broker().thread_filters(pid), std::string("shown"); }),
                ::testing::HasSubstr("may look into"));
  }
  const Other own([] { become(kUser); });
  EXPECT_EQ(in_worker([&own] { return broker().open_ipc(own.pid()), std::string("open"); }), "open");
}

TEST_F(HostileWorker, PutsNothingElsewhereThanItsOwnRestoredProcesses) {
  const Other own([] { become(kUser); }), others([] { become(kOther); }), elsewhere([] { become(kUser); });
  g_not_of_job = elsewhere.pid();
  const auto join = [](pid_t pid, pid_t like) {
    return in_worker([=] { return broker().join(pid, like), std::string("put there"); });
  };
  EXPECT_THAT(join(own.pid(), own.pid()), ::testing::HasSubstr("is not being restored"));
  EXPECT_THAT(join(others.pid(), own.pid()), ::testing::HasSubstr("may look into"));
  const auto child = [](pid_t like) {
    return in_worker([=] {
      const Other made([] {});
      return broker().join(made.pid(), like), std::string("put there");
    });
  };
  EXPECT_THAT(child(elsewhere.pid()), ::testing::HasSubstr("is not of the job"));
  EXPECT_THAT(child(others.pid()), ::testing::HasSubstr("may look into"));
  // Numbers of this namespace may be anybody's a moment later.
  EXPECT_THAT(child(own.pid()), ::testing::HasSubstr("no PID namespace of its own"));
  const auto join_init = [&own](pid_t pid) {
    while (ProcStatus::read(pid).uid[0] != kUser || ProcStat::read(pid).comm != "icp-init")
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // it is root's still
    broker().join(pid, own.pid());
  };
  const auto init = [&] { return start_init(own.pid(), join_init); };
  EXPECT_THAT(in_worker(init), ::testing::HasSubstr("put there by the number 1"));
  g_not_of_job = 0;
}

// A service that believes what root says, at a name that the service has.
TEST_F(HostileWorker, SaysNothingToOthersInRootsName) {
  for (const int type : {SOCK_DGRAM, SOCK_STREAM, SOCK_SEQPACKET}) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    const std::string text = fmt::format("icp-test-{}-{}", ::getpid(), type);
    std::memcpy(name.sun_path + 1, text.data(), text.size());
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
    const UniqueFd service(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::bind(service.get(), reinterpret_cast<const sockaddr*>(&name), length), 0);
    ASSERT_TRUE(type == SOCK_DGRAM || ::listen(service.get(), 5) == 0);
    const Other own([] { become(kUser); });
    const auto ask = [&] {
      const UniqueFd channel(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
      if (::connect(channel.get(), reinterpret_cast<const sockaddr*>(&name), length) != 0) return std::string("none");
      broker().start_init("", channel.get(), channel.get(), own.pid(), {kUser, kUser, {}}, false);
      return std::string("started");
    };
    EXPECT_THAT(in_worker(ask), ::testing::HasSubstr("a socket pair of the user's")) << type;
  }
}

TEST_F(HostileWorker, HasAFewHelpersAtOnce) {
  const Other own([] { become(kUser); });
  const auto ask = [&own] {
    std::vector<std::unique_ptr<IpcAccess>> helpers;
    for (int i = 0; i < 500; ++i) helpers.push_back(broker().open_ipc(own.pid()));
    return std::string("all of them");
  };
  EXPECT_THAT(in_worker(ask), ::testing::HasSubstr("too many helpers"));
  const auto one_by_one = [&own] {
    for (int i = 0; i < 200; ++i) broker().open_ipc(own.pid());
    return std::string("all of them");
  };
  EXPECT_EQ(in_worker(one_by_one), "all of them");
}

TEST_F(HostileWorker, IsToldNothingOfFilesItOnlyNames) {
  const auto ask = [] {
    const UniqueFd named(::open("/etc/shadow", O_PATH | O_CLOEXEC));
    struct stat status {};
    if (::fstat(named.get(), &status) != 0) return std::string("no file");
    const auto held = broker().held_open({{inode_id(status), named.get()}});
    return fmt::format("told: {}", held.size());
  };
  EXPECT_THAT(in_worker(ask), ::testing::HasSubstr("not open"));
}

// ---- TCP ---------------------------------------------------------------------------------------------------------

sockaddr_in at_port(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

// As servers do it.
UniqueFd bound(uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const sockaddr_in address = at_port(port);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return {};
  return fd;
}

uint16_t free_port() {
  const UniqueFd fd = bound(0);
  return InetAddress::local_of(fd.get()).port;
}

TEST_F(HostileWorker, DoesNotListenAtAnothersPort) {
  const uint16_t port = free_port();
  SocketPair go(SOCK_STREAM);
  const pid_t victim = ::fork();
  if (victim == 0) {
    become(kOther);
    char byte;
    (void)::recv(go.there.get(), &byte, 1, 0);
    const UniqueFd server = bound(port);
    byte = server && ::listen(server.get(), 5) == 0 ? 'y' : 'n';
    (void)::send(go.there.get(), &byte, 1, 0);
    for (;;) ::pause();
  }
  const int channel = go.here.get();
  const std::string said = in_worker([port, channel] {
    // There before the server, which the kernel allows among sockets with SO_REUSEADDR that do not listen.
    const UniqueFd early = bound(port);
    char byte = 'g';
    if (!early || ::send(channel, &byte, 1, 0) != 1 || ::recv(channel, &byte, 1, 0) != 1 || byte != 'y')
      return std::string("no server");
    broker().set_tcp_repair(early.get(), TCP_REPAIR_ON);
    if (::listen(early.get(), 5) == 0) return std::string("it listens");
    const UniqueFd late(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    broker().set_tcp_repair(late.get(), TCP_REPAIR_ON);
    const sockaddr_in address = at_port(port);
    if (::bind(late.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      return std::string("it is bound");
    const int error = broker().bind_in_repair(late.get(), {std::string("\x7f\0\0\x01", 4), port, 0}, AF_INET);
    return error == EADDRINUSE ? std::string("refused") : fmt::format("bound: {}", error);
  });
  ::kill(victim, SIGKILL);
  ::waitpid(victim, nullptr, 0);
  EXPECT_EQ(said, "refused");
}

TEST_F(HostileWorker, HasNoPrivilegedPort) {
  const auto ask = [] {
    const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    broker().set_tcp_repair(fd.get(), TCP_REPAIR_ON);
    return fmt::format("{}", broker().bind_in_repair(fd.get(), {std::string("\x7f\0\0\x01", 4), 111, 0}, AF_INET));
  };
  EXPECT_THAT(in_worker(ask), ::testing::HasSubstr("port 111 is none of user"));
}

// A thread that keeps trying to listen while the broker looks into the connection.
TEST_F(HostileWorker, DoesNotListenInAMomentOfRepair) {
  const auto ask = [] {
    for (int i = 0; i < 50; ++i) {
      const UniqueFd server = bound(0);
      const UniqueFd fd = bound(InetAddress::local_of(server.get()).port);
      if (!fd || ::listen(server.get(), 5) != 0) return std::string("no server");
      std::thread other([&fd] {
        for (int tries = 0; tries < 2000; ++tries) ::listen(fd.get(), 5);
      });
      try {
        for (int tries = 0; tries < 5; ++tries) {
          broker().set_tcp_repair(fd.get(), TCP_REPAIR_ON);
          broker().set_tcp_repair(fd.get(), TCP_REPAIR_OFF);
        }
      } catch (const Error&) {
        // It was seen.
      }
      other.join();
      tcp_info info{};
      socklen_t length = sizeof info;
      ::getsockopt(fd.get(), IPPROTO_TCP, TCP_INFO, &info, &length);
      constexpr uint8_t kListens = 10;
      if (info.tcpi_state == kListens) return fmt::format("it listens at try {}", i);
    }
    return std::string("never");
  };
  EXPECT_EQ(in_worker(ask), "never");
}

TEST_F(HostileWorker, HasNoLargerBufferThanTcpTakesItself) {
  size_t most = 0;
  std::ifstream file("/proc/sys/net/ipv4/tcp_rmem");
  for (int i = 0; i < 3; ++i) file >> most;
  size_t asked = 0;
  std::ifstream("/proc/sys/net/core/rmem_max") >> asked;
  const auto ask = [] {
    const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    broker().widen_tcp_buffer(fd.get(), SO_RCVBUFFORCE, 1 << 30);
    return std::to_string(socket_option(fd.get(), SOL_SOCKET, SO_RCVBUF));
  };
  EXPECT_LE(std::stoull(in_worker(ask)), 2 * std::max(most, asked));
}

// ---- requests that make no sense ---------------------------------------------------------------------------------

TEST_F(HostileWorker, IsAnsweredWhateverItSays) {
  const auto ask = [] {
    std::mt19937 random(7);
    const std::vector<uint64_t> extremes{0, 1, 2, static_cast<uint64_t>(::getpid()), UINT64_MAX, INT64_MAX, 1u << 31};
    size_t refused = 0;
    for (int i = 0; i < 5000; ++i) {
      Message request;
      const auto operation = static_cast<uint32_t>(random() % 30);
      for (size_t words = random() % 12; words > 0; --words) {
        const uint64_t value = random() % 4 == 0 ? random() : extremes[random() % extremes.size()];
        if (random() % 2 == 0) request.put(value);
        if (random() % 4 == 0) request.put_text(std::string(random() % 64, static_cast<char>(random())));
        if (random() % 8 == 0) request.fds.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
        if (random() % 8 == 0) request.fds.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      }
      try {
        broker().ask(operation, std::move(request));
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::kGone && !::strstr(error.what(), "has ended")) return std::string(error.what());
        ++refused;
      }
    }
    broker().has_module();  // it is there still
    return std::string(refused > 1000 ? "answered" : "hardly refused");
  };
  EXPECT_EQ(in_worker(ask), "answered");
}

// ---- the broker's end --------------------------------------------------------------------------------------------

TEST_F(HostileWorker, DoesNotOutliveItsStep) {
  const auto go_on = [] {
    for (int i = 0; i < 100; ++i) {
      try {
        broker().has_module();
      } catch (const Error&) {
        // The broker is gone, which is no reason for a hostile worker to end.
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return std::string("here still");
  };
  EXPECT_EQ(in_worker(go_on, [] { return true; }), "");
  EXPECT_EQ(in_worker([] { return broker().has_module(), std::string("answered"); }, [] { return false; }), "answered");
}

TEST_F(HostileWorker, LeavesNoBrokerToWhomItHasGivenItsSocket) {
  SocketPair said(SOCK_STREAM);
  const int end = said.there.get();
  in_worker([end] {
    const pid_t worker = ::getpid();
    if (::fork() == 0) {  // has the socket, and asks when the worker is gone
      for (int i = 0; i < 1000 && ::getppid() == worker; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      std::string text;
      try {
        text = broker().has_module() ? "answered" : "answered no";
      } catch (const Error& error) {
        text = error.kind() == ErrorKind::kGone ? "gone" : error.what();
      }
      (void)::send(end, text.data(), text.size(), 0);
      ::_exit(0);
    }
    return std::string("ends");
  });
  char text[64] = "";
  ASSERT_GT(::recv(said.here.get(), text, sizeof text - 1, 0), 0);
  EXPECT_STREQ(text, "gone");
}

}  // namespace
}  // namespace icp::test

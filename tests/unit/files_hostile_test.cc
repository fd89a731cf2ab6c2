// SPDX-License-Identifier: GPL-2.0-or-later
// Images with values that no capture writes: one clear error each, no crash, nothing outside is touched.
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdio>
#include <functional>
#include <random>
#include <set>
#include <thread>

#include "files_test_util.h"

namespace icp::test {
namespace {

using ::testing::HasSubstr;

struct Image {
  pb::Capsule capsule;
  pb::OpenFile& add(uint32_t id) {
    pb::OpenFile& file = *capsule.add_files();
    file.set_id(id);
    return file;
  }
};

std::string refused(const Image& image, ErrorKind kind = ErrorKind::kImage) {
  return error_of(kind, [&] {
    FileRestore restore(image.capsule, options());
    restore.create();
  });
}

pb::PtyMaster& pty(Image& image, uint32_t id, uint32_t number) {
  pb::PtyMaster& master = *image.add(id).mutable_pty_master();
  master.set_number(number);
  master.set_termios(std::string(44, '\0'));  // struct termios2
  return master;
}

// A number that nobody has: the next one the kernel would give.
uint32_t free_pty() {
  const UniqueFd master(::posix_openpt(O_RDWR | O_NOCTTY));
  unsigned number = 0;
  EXPECT_EQ(::ioctl(master.get(), TIOCGPTN, &number), 0);
  return number;
}

TEST(HostileFiles, Terminals) {
  if (!UniqueFd(::posix_openpt(O_RDWR | O_NOCTTY))) GTEST_SKIP() << "no terminals here";
  const uint32_t number = free_pty();
  Image image;
  pty(image, 1, UINT32_MAX);
  EXPECT_THAT(refused(image), HasSubstr("it has number 4294967295"));
  image = {};
  pty(image, 1, number);
  pty(image, 2, number);
  EXPECT_THAT(refused(image), HasSubstr("two terminals"));
  image = {};
  pty(image, 1, number).set_termios("short");
  EXPECT_THAT(refused(image), HasSubstr("5 bytes of settings"));
  image = {};
  pty(image, 1, number).set_output("x");
  EXPECT_THAT(refused(image), HasSubstr("never been open"));
  image = {};
  pb::PtyMaster& full = pty(image, 1, number);
  full.set_opened(true);
  full.set_output(std::string(1 << 20, 'x'));
  EXPECT_THAT(refused(image), HasSubstr("more than any terminal"));
  image = {};
  pty(image, 1, number);
  image.add(2).mutable_pty_slave()->set_number(number);
  EXPECT_THAT(refused(image), HasSubstr("that is open"));
  image = {};
  image.add(1).mutable_pty_slave()->set_number(number);
  EXPECT_THAT(refused(image), HasSubstr("that is open"));
  image = {};
  pb::Terminal& outer = *image.add(1).mutable_pty_slave()->mutable_outer();
  outer.set_outer(true), outer.set_rank(3), outer.set_fd(-7);
  EXPECT_THAT(refused(image), HasSubstr("no such stream"));
  const UniqueFd taken(::posix_openpt(O_RDWR | O_NOCTTY));
  image = {};
  pty(image, 1, number);
  EXPECT_THAT(refused(image, ErrorKind::kRefused), HasSubstr("another program's"));
}

TEST(HostileFiles, InotifyWatches) {
  const auto with_watches = [](std::initializer_list<std::pair<int, const char*>> watches) {
    Image image;
    pb::Inotify& inotify = *image.add(1).mutable_inotify();
    for (const auto& [wd, path] : watches) {
      pb::InotifyWatch& watch = *inotify.add_watches();
      watch.set_wd(wd), watch.set_path(path), watch.set_mask(UINT32_MAX);
    }
    return image;
  };
  EXPECT_THAT(refused(with_watches({{0, "/"}})), HasSubstr("watch 0 follows 0"));
  EXPECT_THAT(refused(with_watches({{2, "/"}, {1, "/tmp"}})), HasSubstr("watch 1 follows 2"));
  EXPECT_THAT(refused(with_watches({{INT32_MAX, "/"}})), HasSubstr("watch 2147483647"));
  EXPECT_THAT(refused(with_watches({{1, "relative"}})), HasSubstr("no usable path"));
  EXPECT_THAT(refused(with_watches({{1, "/"}, {2, "/"}})), HasSubstr("/ is watched twice"));
  EXPECT_THAT(refused(with_watches({{1, "/no/such/file"}}), ErrorKind::kSystem),
              HasSubstr("watched at the checkpoint"));
}

TEST(HostileFiles, NumbersAndReferences) {
  Image image;
  image.add(0).mutable_eventfd();
  EXPECT_THAT(refused(image), HasSubstr("no number"));
  image = {};
  image.add(1).mutable_eventfd();
  image.add(1).mutable_eventfd();
  EXPECT_THAT(refused(image), HasSubstr("two open files"));
  image = {};
  image.add(1);
  EXPECT_THAT(refused(image), HasSubstr("no known kind"));
  for (const int number : {-1, INT32_MIN, INT32_MAX}) {
    image = {};
    image.add(1).mutable_eventfd();
    pb::FileDescriptor& fd = *image.capsule.add_processes()->add_fds();
    fd.set_fd(number), fd.set_file(1);
    EXPECT_THAT(refused(image), HasSubstr("out of range"));
    fd.set_fd(1), fd.set_file(2);
    EXPECT_THAT(refused(image), HasSubstr("refers to no file"));
    fd.set_file(1);
    *image.capsule.mutable_processes(0)->add_fds() = fd;
    EXPECT_THAT(refused(image), HasSubstr("twice"));
  }
}

TEST(HostileFiles, Paths) {
  const std::vector<std::string> paths = {"", "relative", std::string("/a\0b", 4), "/" + std::string(5000, 'x')};
  for (const std::string& path : paths) {
    Image image;
    pb::OpenFile& file = image.add(1);
    file.mutable_regular();
    file.mutable_identity()->set_path(path);
    refused(image);
  }
  Image image;
  pb::OpenFile& file = image.add(1);
  file.set_flags(0xffffffff);
  file.mutable_regular();
  file.mutable_identity()->set_path("/tmp/../../../../dev/sda");
  refused(image, ErrorKind::kSystem);
  file.mutable_identity()->set_path("/../dev/null");
  EXPECT_THAT(refused(image), HasSubstr("character device"));
}

TEST(HostileFiles, PositionsAndSizes) {
  TempDir dir("/tmp");
  Image image;
  pb::OpenFile& file = image.add(1);
  file.set_flags(O_RDWR);
  file.mutable_identity()->set_path(dir.write("file", "12345"));
  file.mutable_regular()->set_size(UINT64_MAX);
  refused(image);
  file.mutable_regular()->set_size(5);
  file.set_position(UINT64_MAX);
  refused(image);
  file.set_position(0);
  file.mutable_flock()->set_type(99);
  refused(image);
  file.clear_flock();
  pb::PosixLock& lock = *file.add_ofd_locks();
  lock.set_start(INT64_MAX), lock.set_length(UINT64_MAX);
  refused(image);
  EXPECT_EQ(content(dir / "file"), "12345");
}

TEST(HostileFiles, Pipes) {
  for (const uint32_t capacity : {0u, 1u, 0x7fffffffu, 0xffffffffu}) {
    Image image;
    image.add(1).mutable_pipe()->set_capacity(capacity);
    refused(image);
  }
  Image image;
  pb::PipeEnd& end = *image.add(1).mutable_pipe();
  end.set_capacity(65536);
  end.set_data(std::string(65537, 'x'));
  EXPECT_THAT(refused(image), HasSubstr("more data"));
  end.set_data("abc");
  end.add_packets(0xffffffff);
  EXPECT_THAT(refused(image), HasSubstr("add up"));
  end.clear_packets();
  for (int i = 0; i < 3; i++) end.add_packets(1);
  pb::PipeEnd& other = *image.add(2).mutable_pipe();
  other.set_capacity(65536);
  other.set_data("twice");
  EXPECT_THAT(refused(image), HasSubstr("twice"));
  other.clear_data();
  other.set_fifo_path("/tmp/fifo");
  refused(image);
  image = {};
  pb::PipeEnd& many = *image.add(1).mutable_pipe();
  many.set_capacity(65536);
  many.set_data(std::string(1000, 'x'));
  for (int i = 0; i < 1000; i++) many.add_packets(1);
  EXPECT_THAT(refused(image), HasSubstr("more data"));
}

TEST(HostileFiles, AnonymousFiles) {
  Image image;
  image.add(1).mutable_eventfd()->set_count(UINT64_MAX);
  refused(image);
  for (const int clock : {-1, 2, 99, INT32_MIN}) {
    image = {};
    image.add(1).mutable_timerfd()->set_clock(clock);
    refused(image);
  }
  image = {};
  pb::TimerFd& timer = *image.add(1).mutable_timerfd();
  timer.set_clock(1);
  timer.set_interval_ns(UINT64_MAX), timer.set_remaining_ns(UINT64_MAX), timer.set_ticks(UINT64_MAX);
  timer.set_settime_flags(UINT32_MAX);
  FileRestore restore(image.capsule, options());
  EXPECT_NO_THROW(restore.create());
  EXPECT_NO_THROW(restore.local_fd(1));
  error_of(ErrorKind::kImage, [&] { restore.local_fd(2); });
}

TEST(HostileFiles, EpollSets) {
  const auto with_item = [](int fd, uint32_t file, uint32_t events) {
    Image image;
    pb::EpollItem& item = *image.add(1).mutable_epoll()->add_items();
    image.add(2).mutable_eventfd();
    item.set_fd(fd), item.set_file(file), item.set_events(events);
    return image;
  };
  refused(with_item(-5, 2, EPOLLIN));
  refused(with_item(INT32_MAX, 2, EPOLLIN));
  refused(with_item(5, 77, EPOLLIN));
  refused(with_item(5, 1, EPOLLIN));                     // itself
  refused(with_item(5, 2, UINT32_MAX & ~EPOLLONESHOT));  // EPOLLEXCLUSIVE with what it does not go with
  Image twice = with_item(5, 2, EPOLLIN);
  *twice.capsule.mutable_files(0)->mutable_epoll()->add_items() = twice.capsule.files(0).epoll().items(0);
  refused(twice);
  // Numbers that the agent itself uses must survive.
  Image low;
  low.add(2).mutable_eventfd();
  pb::EpollFd& set = *low.add(1).mutable_epoll();
  for (int fd = 0; fd < 64; fd++) {
    pb::EpollItem& item = *set.add_items();
    item.set_fd(fd), item.set_file(2), item.set_events(EPOLLIN);
  }
  FileRestore restore(low.capsule, options());
  restore.create();
  EXPECT_NE(::fcntl(0, F_GETFD), -1);
}

TEST(HostileFiles, UnixSockets) {
  const auto socket = [](Image& image, uint32_t id, uint64_t ino, uint64_t peer) -> pb::UnixSocket& {
    pb::UnixSocket& made = *image.add(id).mutable_unix_socket();
    made.set_type(SOCK_STREAM), made.set_ino(ino), made.set_peer_ino(peer), made.set_paired(true);
    return made;
  };
  Image image;
  socket(image, 1, 5, 6);
  EXPECT_THAT(refused(image), HasSubstr("do not fit"));
  socket(image, 2, 6, 7);
  refused(image);
  image = {};
  socket(image, 1, 5, 5);
  refused(image);
  image = {};
  socket(image, 1, 5, 0);
  socket(image, 2, 5, 0);
  EXPECT_THAT(refused(image), HasSubstr("twice"));
  image = {};
  socket(image, 1, 5, 0).set_type(99);
  refused(image);
  image = {};
  socket(image, 1, 5, 0).set_send_buffer(UINT32_MAX);
  refused(image);
  for (const std::string& name : {std::string("rel"), "/" + std::string(200, 'x')}) {
    image = {};
    pb::UnixSocket& bound = socket(image, 1, 5, 0);
    bound.set_paired(false);
    bound.set_name(name);
    refused(image);
  }
  TempDir dir("/tmp");
  image = {};
  pb::UnixSocket& bound = socket(image, 1, 5, 0);
  bound.set_paired(false);
  bound.set_name(dir.write("precious", "data"));
  EXPECT_THAT(refused(image), HasSubstr("in the way"));
  bound.set_paired(true);
  EXPECT_THAT(refused(image), HasSubstr("in the way"));
  EXPECT_EQ(content(dir / "precious"), "data");
  const std::function<void(pb::UnixSocket&)> harms[] = {
      [](pb::UnixSocket& s) { s.add_control()->set_entry(1); },
      [](pb::UnixSocket& s) { s.add_queue("x"), s.add_control()->add_files(77); },
      [](pb::UnixSocket& s) {
        s.add_queue("x");
        for (int i = 0; i < 300; ++i) s.mutable_control(s.control_size() > 0 ? 0 : (s.add_control(), 0))->add_files(1);
      },
      [](pb::UnixSocket& s) { s.set_pending_of(9); },
      [](pb::UnixSocket& s) { s.set_paired(false), s.set_pending_of(9); },
      [](pb::UnixSocket& s) { s.set_name("name"), s.set_place("/tmp/other"); },
      [](pb::UnixSocket& s) { s.set_name("name"), s.set_place("name"); },
      [](pb::UnixSocket& s) {
        pb::SocketOption& option = *s.add_options();
        option.set_level(SOL_SOCKET), option.set_name(SO_ATTACH_FILTER), option.set_value("123");
      },
      [](pb::UnixSocket& s) {
        pb::SocketOption& option = *s.add_options();
        option.set_level(SOL_SOCKET), option.set_name(SO_ATTACH_FILTER), option.set_value(std::string(8, '\xff'));
      },
  };
  for (const auto& harm : harms) {
    image = {};
    harm(socket(image, 1, 5, 0));
    refused(image);
  }
}

TEST(HostileFiles, ContentAndPlaces) {
  TempDir dir("/tmp");
  Image image;
  pb::OpenFile& file = image.add(1);
  file.set_flags(O_RDWR);
  file.mutable_identity()->set_path(dir / "new");
  file.mutable_identity()->set_mode(0106777);
  file.mutable_regular()->set_has_content(true);
  file.mutable_regular()->set_content("x");
  EXPECT_THAT(refused(image), HasSubstr("cut off"));
  file.mutable_regular()->set_size(1);
  file.mutable_regular()->set_hashed(UINT64_MAX);
  file.mutable_identity()->set_path("/proc/sys/kernel/none");
  refused(image, ErrorKind::kSystem);
  file.mutable_link()->set_text("x");
  file.mutable_identity()->set_path("relative");
  refused(image);
  file.mutable_identity()->set_path("/tmp");
  EXPECT_THAT(refused(image), HasSubstr("something else"));
}

pb::TcpSocket& tcp_end(Image& image, uint32_t id, uint32_t local_port, uint32_t remote_port) {
  pb::TcpSocket& socket = *image.add(id).mutable_tcp();
  socket.set_state(pb::TcpSocket::CONNECTED), socket.set_mss(1460), socket.set_receive_window(1000);
  for (pb::InetAddress* address : {socket.mutable_local(), socket.mutable_remote()}) address->set_ip("\x7f\0\0\x01", 4);
  socket.mutable_local()->set_port(local_port), socket.mutable_remote()->set_port(remote_port);
  return socket;
}

TEST(HostileFiles, TcpConnections) {
  struct Case {
    const char* says;
    std::function<void(pb::TcpSocket&)> harm;
  };
  const Case cases[] = {
      {"no known state", [](auto& s) { s.set_state(static_cast<pb::TcpSocket::State>(77)); }},
      {"not part of this restart", [](auto& s) { s.mutable_remote()->set_port(50003); }},
      {"no usable address", [](auto& s) { s.mutable_local()->set_ip("abc"); }},
      {"no usable address", [](auto& s) { s.mutable_local()->set_ip(std::string(16, 'x')); }},
      {"no usable address", [](auto& s) { s.mutable_remote()->set_port(70000); }},
      {"do not fit each other", [](auto& s) { s.mutable_local()->set_port(0); }},
      {"out of range", [](auto& s) { s.set_send_scale(15); }},
      {"out of range", [](auto& s) { s.set_mss(0); }},
      {"out of range", [](auto& s) { s.set_receive_window(UINT32_MAX); }},
      {"backlog", [](auto& s) { s.set_backlog(UINT32_MAX); }},
      {"not fit its other end", [](auto& s) { s.set_received(5); }},
      {"not fit its other end", [](auto& s) { s.set_sent(1u << 31); }},
      {"waits in an unconnected",
       [](auto& s) {
         s.set_state(pb::TcpSocket::LISTENING);
         s.set_receive_queue("x");
       }},
      {"socket option",
       [](auto& s) {
         s.add_options()->set_level(SOL_SOCKET);
         s.mutable_options(0)->set_name(SO_DEBUG);
         s.mutable_options(0)->set_value("\1\0\0\0", 4);
       }},
      {"socket option",
       [](auto& s) {
         s.add_options()->set_level(SOL_SOCKET);
         s.mutable_options(0)->set_name(SO_LINGER);
         s.mutable_options(0)->set_value("short");
       }},
  };
  for (const Case& one : cases) {
    Image image;
    one.harm(tcp_end(image, 1, 50001, 50002));
    tcp_end(image, 2, 50002, 50001);
    EXPECT_THAT(refused(image), HasSubstr(one.says));
  }
  Image image;
  tcp_end(image, 1, 0, 0).set_state(pb::TcpSocket::LISTENING);
  EXPECT_THAT(refused(image), HasSubstr("listens without a port"));
  image = {};
  tcp_end(image, 1, 50001, 50002);
  tcp_end(image, 2, 50001, 50002);
  EXPECT_THAT(refused(image), HasSubstr("twice"));
}

// As nobody has accepted them: made again by connecting to the listener of the image.
TEST(HostileFiles, TcpConnectionsNotAccepted) {
  const auto pending = [](Image& image, uint32_t id, uint32_t port) -> pb::TcpSocket& {
    pb::TcpSocket& socket = tcp_end(image, id, 50012 + id, port);
    socket.set_pending_of(1);
    return socket;
  };
  const std::function<void(pb::TcpSocket&)> harms[] = {
      [](auto& s) { s.set_pending_of(7); },
      [](auto& s) { s.set_pending_of(2); },
      [](auto& s) { s.mutable_remote()->set_port(22); },
      [](auto& s) { s.set_receive_queue("x"); },
      [](auto& s) { s.set_send_queue("x"); },
  };
  for (const auto& harm : harms) {
    Image image;
    tcp_end(image, 1, 50011, 0).set_state(pb::TcpSocket::LISTENING);
    harm(pending(image, 2, 50011));
    EXPECT_THAT(refused(image), HasSubstr("does not fit what listens"));
  }
  Image image;
  tcp_end(image, 1, 50011, 0).set_state(pb::TcpSocket::LISTENING);
  pending(image, 2, 50011).mutable_remote()->set_ip("abc");
  EXPECT_THAT(refused(image), HasSubstr("no usable address"));
  image = {};
  tcp_end(image, 1, 50011, 0).set_state(pb::TcpSocket::LISTENING);
  for (uint32_t id = 2; id < 6; ++id) pending(image, id, 50011);  // its backlog is 0: one fits
  EXPECT_THAT(refused(image), HasSubstr("than its queue takes"));
}

// The agent is root; a user's image must not get a port of the system's services from it.
TEST(HostileFiles, PrivilegedPorts) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  for (const auto state : {pb::TcpSocket::UNCONNECTED, pb::TcpSocket::LISTENING, pb::TcpSocket::CONNECTED}) {
    Image image;
    tcp_end(image, 1, 111, 50002).set_state(state);
    tcp_end(image, 2, 50002, 111);
    FileRestoreOptions as_user = options();
    as_user.identity = {65534, 65534, {}};
    if (state != pb::TcpSocket::CONNECTED) image.capsule.mutable_files()->RemoveLast();
    EXPECT_THAT(error_of(ErrorKind::kImage, [&] { FileRestore(image.capsule, as_user).create(); }),
                HasSubstr("may not use port 111"));
  }
}

// Ports of 127.0.0.1 where somebody listens.
std::set<uint16_t> listening_ports() {
  std::set<uint16_t> ports;
  std::ifstream lines("/proc/net/tcp");
  for (std::string line; std::getline(lines, line);) {
    unsigned port = 0, state = 0;
    if (std::sscanf(line.c_str(), " %*d: 0100007F:%x %*x:%*x %x", &port, &state) == 2 && state == 0x0a)
      ports.insert(static_cast<uint16_t>(port));
  }
  return ports;
}

// The other end of a connection that had been closed comes from a listener that anybody can connect to.
TEST(HostileFiles, ForeignConnections) {
  std::atomic<bool> stop = false;
  std::thread stranger([&] {
    const std::set<uint16_t> others = listening_ports();
    while (!stop) {
      for (const uint16_t port : listening_ports()) {
        if (others.contains(port)) continue;
        sockaddr_in address{};
        address.sin_family = AF_INET, address.sin_port = htons(port), address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
      }
    }
  });
  for (int i = 0; i < 300; i++) {
    Image image;
    pb::TcpSocket& socket = tcp_end(image, 1, 50001, 50002);
    socket.set_state(pb::TcpSocket::ENDED), socket.set_shut_read(true), socket.set_receive_queue("saved");
    FileRestore restore(image.capsule, options());
    restore.create();
    char data[16] = {};
    ASSERT_EQ(::recv(restore.local_fd(1), data, sizeof data, 0), 5) << i;
    ASSERT_STREQ(data, "saved");
  }
  stop = true;
  stranger.join();
}

TEST(HostileFiles, ThousandsOfFiles) {
  Image image;
  for (uint32_t id = 1; id <= 3000; id++) image.add(id).mutable_eventfd()->set_count(id);
  try {
    FileRestore restore(image.capsule, options());
    restore.create();
    EXPECT_GE(restore.local_fd(3000), 0);
  } catch (const Error& error) {
    EXPECT_EQ(error.error_number(), EMFILE) << error.what();
  }
}

// Random bytes in the place of a message: whatever still parses must be refused or restored, nothing else.
TEST(HostileFiles, RandomImages) {
  std::mt19937 random(4711);
  Image image;
  image.add(1).mutable_pipe()->set_capacity(4096);
  image.add(2).mutable_timerfd()->set_clock(1);
  image.add(3).mutable_epoll()->add_items()->set_file(2);
  image.add(4).mutable_unix_socket()->set_type(1);
  image.add(5).mutable_char_device();
  image.capsule.mutable_files(4)->mutable_identity()->set_path("/dev/null");
  tcp_end(image, 6, 50001, 50002).set_send_queue("abc");
  tcp_end(image, 7, 50002, 50001).set_receive_queue("abcd");
  image.add(8).mutable_udp()->mutable_local()->set_ip("\x7f\0\0\x01", 4);
  const std::string good = image.capsule.SerializeAsString();
  for (int i = 0; i < 2000; i++) {
    std::string bad = good;
    for (int flips = 0; flips < 3; flips++) bad[random() % bad.size()] = static_cast<char>(random());
    pb::Capsule capsule;
    if (!capsule.ParseFromString(bad)) continue;
    try {
      FileRestore restore(capsule, options());
      restore.create();
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace icp::test

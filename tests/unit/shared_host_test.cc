// SPDX-License-Identifier: GPL-2.0-or-later
// What capsules of several hosts cannot share on one.
#include "engine/restore/shared_host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>

#include "engine/base/error.h"
#include "engine/files/inet_address.h"

namespace icp {
namespace {

using testing::HasSubstr;

pb::InetAddress at(const std::string& ip, uint16_t port) {
  pb::InetAddress image;
  InetAddress address = *InetAddress::parse(ip);
  address.port = port;
  address.store(image);
  return image;
}

struct Host {
  explicit Host(std::string called) : name(std::move(called)) {}

  Host& tcp(pb::TcpSocket::State state, const pb::InetAddress& local, const pb::InetAddress& remote = {}) {
    pb::TcpSocket& socket = *capsule.add_files()->mutable_tcp();
    socket.set_state(state);
    socket.set_v6(local.ip().size() == 16);
    *socket.mutable_local() = local;
    *socket.mutable_remote() = remote;
    return *this;
  }
  Host& listens(const std::string& ip, uint16_t port) { return tcp(pb::TcpSocket::LISTENING, at(ip, port)); }
  Host& v6_only() {
    pb::SocketOption& option = *capsule.mutable_files(capsule.files_size() - 1)->mutable_tcp()->add_options();
    option.set_level(IPPROTO_IPV6);
    option.set_name(IPV6_V6ONLY);
    option.set_value(std::string{1, 0, 0, 0});
    return *this;
  }
  Host& connected(const std::string& ip, uint16_t port, const std::string& other, uint16_t other_port) {
    return tcp(pb::TcpSocket::CONNECTED, at(ip, port), at(other, other_port));
  }
  Host& udp(uint16_t port) {
    *capsule.add_files()->mutable_udp()->mutable_local() = at("0.0.0.0", port);
    return *this;
  }
  Host& unix_name(const std::string& name_of_socket) {
    capsule.add_files()->mutable_unix_socket()->set_name(name_of_socket);
    return *this;
  }
  Host& shm(const std::string& path) {
    pb::MemoryObject& object = *capsule.add_objects();
    object.set_kind(pb::MemoryObject::SHM_FILE);
    object.set_path(path);
    return *this;
  }

  std::string name;
  pb::Capsule capsule;
};

// What is wrong with both on one host; empty: nothing. `host` of both, if they are from one.
std::string complaint(const Host& a, const Host& b, const std::string& host = {}) {
  try {
    check_shared_host(
        {{"a", host.empty() ? a.name : host, &a.capsule}, {"b", host.empty() ? b.name : host, &b.capsule}});
    return {};
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kRefused);
    EXPECT_THAT(error.hint(), HasSubstr("as many nodes"));
    return error.what();
  }
}

TEST(SharedHost, ListenersOfOnePort) {
  const Host any = Host("a").listens("0.0.0.0", 80);
  EXPECT_EQ(complaint(any, Host("b").listens("0.0.0.0", 80)),
            "the processes of a and b cannot share a node: both have TCP port 80");
  EXPECT_THAT(complaint(any, Host("b").listens("10.0.0.2", 80)), HasSubstr("port 80"));
  EXPECT_THAT(complaint(Host("a").listens("10.0.0.1", 80), Host("b").listens("10.0.0.2", 80)), HasSubstr("port 80"));
  EXPECT_THAT(complaint(any, Host("b").listens("::", 80)), HasSubstr("port 80"));
  EXPECT_THAT(complaint(any, Host("b").tcp(pb::TcpSocket::UNCONNECTED, at("0.0.0.0", 80))), HasSubstr("port 80"));
  EXPECT_EQ(complaint(any, Host("b").listens("::", 80).v6_only()), "");
  EXPECT_EQ(complaint(any, Host("b").listens("0.0.0.0", 81)), "");
  EXPECT_EQ(complaint(Host("a").listens("127.0.0.1", 80), Host("b").listens("10.0.0.2", 80)), "");
  EXPECT_EQ(complaint(any, Host("b").udp(80)), "");
  EXPECT_THAT(complaint(Host("a").udp(80), Host("b").udp(80)), HasSubstr("UDP port 80"));
  EXPECT_EQ(complaint(Host("a").udp(0), Host("b").udp(0)), "");
}

TEST(SharedHost, AListenerAndAConnectionOfItsPort) {
  EXPECT_EQ(complaint(Host("a").listens("0.0.0.0", 80), Host("b").connected("10.0.0.2", 80, "10.0.0.9", 7)), "");
}

TEST(SharedHost, ConnectionsThatBecomeOne) {
  const auto joined = [](uint16_t one, uint16_t other) {
    return complaint(Host("a").connected("10.0.0.1", one, "10.0.0.2", other),
                     Host("b").connected("10.0.0.2", other, "10.0.0.1", one));
  };
  EXPECT_EQ(joined(5000, 6000), "");
  EXPECT_THAT(joined(5000, 5000), HasSubstr("TCP connection 10.0.0.2:5000 to 10.0.0.1:5000 would be there twice"));
  // To one port of a third host, from the same port of theirs.
  EXPECT_THAT(complaint(Host("a").connected("10.0.0.1", 5000, "10.0.0.9", 80),
                        Host("b").connected("10.0.0.2", 5000, "10.0.0.9", 80)),
              HasSubstr("twice"));
  EXPECT_EQ(complaint(Host("a").connected("10.0.0.1", 5000, "10.0.0.9", 80),
                      Host("b").connected("10.0.0.2", 5000, "10.0.0.8", 80)),
            "");
  // Inside of each.
  EXPECT_THAT(complaint(Host("a").connected("127.0.0.1", 1, "127.0.0.1", 2).connected("127.0.0.1", 2, "127.0.0.1", 1),
                        Host("b").connected("127.0.0.1", 1, "127.0.0.1", 2).connected("127.0.0.1", 2, "127.0.0.1", 1)),
              HasSubstr("twice"));
}

TEST(SharedHost, Names) {
  const std::string abstract("\0name", 5);
  EXPECT_THAT(complaint(Host("a").unix_name(abstract), Host("b").unix_name(abstract)), HasSubstr("Unix socket @name"));
  EXPECT_THAT(complaint(Host("a").unix_name("/tmp/x"), Host("b").unix_name("/tmp/x")), HasSubstr("/tmp/x"));
  EXPECT_EQ(complaint(Host("a").unix_name("/tmp/x"), Host("b").unix_name("/tmp/y")), "");
  EXPECT_THAT(complaint(Host("a").shm("/dev/shm/x"), Host("b").shm("/dev/shm/x")), HasSubstr("file /dev/shm/x"));
}

// Two slurmds of one machine, or a step restored on fewer nodes before.
TEST(SharedHost, WhatWasSharedBeforeIsNoObstacle) {
  EXPECT_EQ(complaint(Host("a").shm("/dev/shm/x").listens("0.0.0.0", 80),
                      Host("b").shm("/dev/shm/x").listens("0.0.0.0", 80), "one"),
            "");
}

}  // namespace
}  // namespace icp

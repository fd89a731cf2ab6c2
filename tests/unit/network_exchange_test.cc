// SPDX-License-Identifier: GPL-2.0-or-later
// Which addresses connections get when their hosts are other ones.
#include "coordinator/icpstepd/network_exchange.h"

#include <gtest/gtest.h>

#include "engine/base/error.h"

namespace icp {
namespace {

using EndList = google::protobuf::RepeatedPtrField<net::ConnectionEnd>;

std::string ip(const std::string& text) { return InetAddress::parse(text)->ip; }
InetAddress address(const std::string& text, uint16_t port) { return {ip(text), port}; }

// One end, of a connection of ports 1 and 2 in old addresses, that is to be `now` on a host.
EndList end(const std::string& local, uint16_t port, const std::string& remote, uint16_t other, const std::string& now,
            const std::string& network) {
  EndList list = to_message({{address(local, port), address(remote, other)}});
  list[0].set_new_local_ip(ip(now));
  list[0].set_network(network);
  return list;
}

Ends result(const std::map<Ends, Ends>& found) {
  EXPECT_EQ(found.size(), 1u);
  return found.begin()->second;
}

TEST(NewConnections, BothEndsMove) {
  const EndList mine = end("10.0.0.1", 1, "10.0.0.2", 2, "10.0.0.2", "x");
  const EndList other = end("10.0.0.2", 2, "10.0.0.1", 1, "10.0.0.3", "y");
  EXPECT_EQ(result(new_connections(mine, other)), Ends(address("10.0.0.2", 1), address("10.0.0.3", 2)));
  EXPECT_EQ(result(new_connections(other, mine)), Ends(address("10.0.0.3", 2), address("10.0.0.2", 1)));
}

// Restored on one host before, and apart again now: both had the address of that one.
TEST(NewConnections, TwoCapsulesOfOneHostPart) {
  const EndList stays = end("10.0.0.1", 1, "10.0.0.1", 2, "10.0.0.1", "x");
  const EndList goes = end("10.0.0.1", 2, "10.0.0.1", 1, "10.0.0.2", "y");
  EXPECT_EQ(result(new_connections(stays, goes)), Ends(address("10.0.0.1", 1), address("10.0.0.2", 2)));
  EXPECT_EQ(result(new_connections(goes, stays)), Ends(address("10.0.0.2", 2), address("10.0.0.1", 1)));
}

TEST(NewConnections, Loopback) {
  const EndList mine = end("127.0.0.1", 1, "127.0.0.1", 2, "10.0.0.1", "x");
  EndList other = end("127.0.0.1", 2, "127.0.0.1", 1, "10.0.0.1", "x");
  EXPECT_EQ(result(new_connections(mine, other)), Ends(address("127.0.0.1", 1), address("127.0.0.1", 2)));
  other[0].set_network("y");
  other[0].set_new_local_ip(ip("10.0.0.2"));
  EXPECT_EQ(result(new_connections(mine, other)), Ends(address("10.0.0.1", 1), address("10.0.0.2", 2)));
  other[0].set_new_local_ip(ip("127.0.0.1"));
  EXPECT_THROW(new_connections(mine, other), Error);
}

TEST(NewConnections, WhatComesFromOthersIsChecked) {
  const EndList mine = end("10.0.0.1", 1, "10.0.0.2", 2, "10.0.0.2", "x");
  EndList other = end("10.0.0.2", 2, "10.0.0.1", 1, "10.0.0.3", "y");
  other[0].set_new_local_ip("short");
  EXPECT_TRUE(new_connections(mine, other).empty());
  other[0].set_new_local_ip(ip("10.0.0.3"));
  other[0].set_local_ip("x");
  EXPECT_TRUE(new_connections(mine, other).empty());
  EXPECT_TRUE(new_connections(mine, {}).empty());
}

google::protobuf::RepeatedPtrField<net::NewAddress> moved(const std::string& from, const std::string& to) {
  google::protobuf::RepeatedPtrField<net::NewAddress> list;
  list.Add()->set_old_ip(ip(from));
  list[0].set_new_ip(ip(to));
  return list;
}

TEST(AddressTexts, OfItsOwnAddressesACapsuleBelievesOnlyItself) {
  pb::Capsule capsule;
  address("10.0.0.1", 1).store(*capsule.add_files()->mutable_tcp()->mutable_local());
  using Texts = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(address_texts(moved("10.0.0.1", "10.0.0.9"), {}, capsule), Texts{});
  EXPECT_EQ(address_texts(moved("10.0.0.1", "10.0.0.9"), moved("10.0.0.1", "10.0.0.2"), capsule),
            (Texts{{"10.0.0.1", "10.0.0.2"}}));
  EXPECT_EQ(address_texts(moved("10.0.0.5", "10.0.0.9"), {}, capsule), (Texts{{"10.0.0.5", "10.0.0.9"}}));
  EXPECT_EQ(address_texts(moved("10.0.0.5", "::1"), {}, capsule), Texts{});
}

TEST(EndsToRestore, OnlyThoseThatLeadOut) {
  pb::Capsule capsule;
  const auto add = [&](const InetAddress& local, const InetAddress& remote) {
    pb::TcpSocket& socket = *capsule.add_files()->mutable_tcp();
    socket.set_state(pb::TcpSocket::CONNECTED);
    local.store(*socket.mutable_local());
    remote.store(*socket.mutable_remote());
  };
  add(address("127.0.0.1", 1), address("127.0.0.1", 2));
  add(address("127.0.0.1", 2), address("127.0.0.1", 1));
  add(address("127.0.0.1", 3), address("127.0.0.1", 4));
  const EndList found = ends_to_restore(capsule);
  ASSERT_EQ(found.size(), 1);
  EXPECT_EQ(found[0].local_port(), 3u);
  EXPECT_EQ(found[0].new_local_ip().size(), 4u);
  EXPECT_FALSE(found[0].network().empty());
}

}  // namespace
}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/packet.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

namespace icp::protocol {
namespace {

struct Pair {
  int ends[2] = {-1, -1};
  Pair() { EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0); }
  ~Pair() {
    ::close(ends[0]);
    ::close(ends[1]);
  }
};

TEST(Packet, KeepsTypeAndFields) {
  Packet packet(kSay);
  packet.set("text", "a = b\nc").set("empty", "").set_number("n", -5);
  const auto read = decode(encode(packet));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->type, kSay);
  EXPECT_EQ(read->get("text"), "a = b\nc");
  EXPECT_EQ(read->get("empty"), "");
  EXPECT_EQ(read->get("missing"), "");
  EXPECT_EQ(read->number("n"), -5);
  EXPECT_FALSE(read->number("text"));
  EXPECT_FALSE(read->number("empty"));
}

TEST(Packet, RefusesWhatIsNoMessage) {
  using namespace std::string_literals;
  for (const std::string& bytes : {""s, "x"s, "\0"s, "t\0novalue\0"s, "t\0=v\0"s, "t\0k=v"s}) {
    EXPECT_FALSE(decode(bytes)) << bytes.size();
  }
  EXPECT_FALSE(decode("t\0n=1"s));
  EXPECT_FALSE(decode("t\0n=99999999999999999999\0"s)->number("n"));
}

TEST(Packet, CarriesDescriptors) {
  Pair pair;
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  Packet packet(kStreams);
  packet.fds = {pipe_ends[1]};
  ASSERT_TRUE(send_packet(pair.ends[0], packet));
  Packet got;
  ASSERT_EQ(receive_packet(pair.ends[1], got, 1000), Received::kPacket);
  ASSERT_EQ(got.fds.size(), 1u);
  EXPECT_EQ(::fcntl(got.fds[0], F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(::write(got.fds[0], "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(::read(pipe_ends[0], &byte, 1), 1);
  got.close_fds();
  ::close(pipe_ends[0]);
  ::close(pipe_ends[1]);
}

// Who is at the other end may have been stopped by a user.
TEST(Packet, IsNotSentForEver) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  const Packet packet = Packet("task-exit").set_number("rank", 1);
  int sent = 0;
  while (sent < 100'000 && send_packet(ends[0], packet, 50)) sent++;
  EXPECT_EQ(errno, EAGAIN);
  EXPECT_GT(sent, 10);
  EXPECT_LT(sent, 100'000);
  EXPECT_FALSE(send_packet(ends[0], packet, 0));
  Packet got;
  EXPECT_EQ(receive_packet(ends[1], got, 1000), Received::kPacket);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(Packet, SaysWhyNothingCame) {
  Pair pair;
  Packet got;
  EXPECT_EQ(receive_packet(pair.ends[1], got, 0), Received::kNothing);
  ASSERT_EQ(::send(pair.ends[0], "junk", 4, 0), 4);
  EXPECT_EQ(receive_packet(pair.ends[1], got, 0), Received::kBroken);
  ::shutdown(pair.ends[0], SHUT_WR);
  EXPECT_EQ(receive_packet(pair.ends[1], got, 1000), Received::kClosed);
  EXPECT_FALSE(send_packet(pair.ends[1], Packet(kSay).set("text", std::string(kMaxPacket, 'x'))));
}

TEST(StepFacts, RoundTrip) {
  StepFacts facts;
  facts.job = 4'000'000'000;
  facts.step = kBatchStep;
  facts.uid = 1000;
  facts.gid = 100;
  facts.groups = {100, 27, 4};
  facts.node = "node1";
  facts.local_tasks = 4;
  facts.total_tasks = 8;
  facts.restarts = 2;
  facts.interval = "0:02";
  facts.checkpoint_dir = "/scratch/a b";
  facts.private_ipc = true;
  const auto read = StepFacts::from_packet(*decode(encode(facts.to_packet())));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->job, facts.job);
  EXPECT_EQ(read->step, facts.step);
  EXPECT_EQ(read->groups, facts.groups);
  EXPECT_EQ(read->node, facts.node);
  EXPECT_EQ(read->total_tasks, 8u);
  EXPECT_EQ(read->restarts, 2u);
  EXPECT_EQ(read->checkpoint_dir, facts.checkpoint_dir);
  EXPECT_TRUE(read->private_ipc);
  EXPECT_FALSE(StepFacts::from_packet(Packet(kHello)));
  EXPECT_EQ(step_name(kBatchStep), "batch");
  EXPECT_EQ(step_name(3), "3");
}

}  // namespace
}  // namespace icp::protocol

// SPDX-License-Identifier: GPL-2.0-or-later
// The relay of PMI between tasks and a manager that a test plays. A restart is a packet of the agent's: the manager is
// then asked what a new one is.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <memory>
#include <thread>

#include "coordinator/pmi/relay.h"
#include "coordinator/protocol/packet.h"

namespace icp::pmi {
namespace {

constexpr int kPatience = 10'000;  // ms

struct End {
  UniqueFd fd;

  void say(const std::string& bytes) const {
    EXPECT_EQ(::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  bool readable(int timeout_ms) const {
    pollfd one{fd.get(), POLLIN, 0};
    return ::poll(&one, 1, timeout_ms) == 1;
  }
  // Empty when there is none.
  std::string line() const {
    std::string got;
    char byte;
    while (readable(kPatience) && ::recv(fd.get(), &byte, 1, 0) == 1) {
      got += byte;
      if (byte == '\n') break;
    }
    return got;
  }
};

std::pair<UniqueFd, UniqueFd> pair_of(int type) {
  int ends[2];
  EXPECT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

struct Task {
  End program, manager;

  // Asks, and is answered; what the manager hears is what was asked.
  void ask(const std::string& request, const std::string& answer) const {
    program.say(request);
    EXPECT_EQ(manager.line(), request);
    manager.say(answer);
    EXPECT_EQ(program.line(), answer);
  }
};

const std::string kInit = "cmd=init pmi_version=1 pmi_subversion=1\n",
                  kInitDone = "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=1\n", kIn = "cmd=barrier_in\n",
                  kOut = "cmd=barrier_out rc=0\n", kPutDone = "cmd=put_result rc=0\n";

class PmiRelay : public ::testing::Test {
 protected:
  PmiRelay() {
    auto [agent, relay] = pair_of(SOCK_SEQPACKET);
    control_ = std::move(agent);
    thread_ = std::thread([control = std::move(relay)]() mutable { Relay(std::move(control)).run(); });
  }
  ~PmiRelay() override {
    control_.reset();
    for (Task& task : tasks_) task.program.fd.reset();
    thread_.join();
  }

  void add_task() {
    auto [program, relay] = pair_of(SOCK_STREAM);
    auto [manager, given] = pair_of(SOCK_STREAM);
    protocol::Packet packet(protocol::kPmiClient);
    packet.fds = {relay.get()};
    ASSERT_TRUE(protocol::send_packet(control_.get(), packet));
    char byte = 0;
    iovec part{&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    const int fd = given.get();
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    ASSERT_EQ(::sendmsg(program.get(), &message, MSG_NOSIGNAL), 1);
    tasks_.push_back({{std::move(program)}, {std::move(manager)}});
  }

  void add_tasks(int count) {
    for (int i = 0; i < count; i++) add_task();
    for (const Task& task : tasks_) task.ask(kInit, kInitDone);
  }

  void restart(int64_t barriers_there = 0) const {
    ASSERT_TRUE(protocol::send_packet(control_.get(),
                                      protocol::Packet(protocol::kPmixServer).set_number(kBarrierKey, barriers_there)));
  }

  static std::string put(int rank) {
    return "cmd=put kvsname=1.0 key=P" + std::to_string(rank) + " value=two words=" + std::to_string(rank) + "\n";
  }

  void pass_barrier() const {
    for (const Task& task : tasks_) task.program.say(kIn);
    for (const Task& task : tasks_) EXPECT_EQ(task.manager.line(), kIn);
    for (const Task& task : tasks_) task.manager.say(kOut);
    for (const Task& task : tasks_) EXPECT_EQ(task.program.line(), kOut);
  }

  // What all say to a new manager: what was put, then a barrier if one was passed.
  void catch_up() const {
    for (size_t i = 0; i < tasks_.size(); i++) {
      EXPECT_EQ(tasks_[i].manager.line(), put(static_cast<int>(i)));
      tasks_[i].manager.say(kPutDone);
    }
    for (const Task& task : tasks_) EXPECT_EQ(task.manager.line(), kIn);
    for (const Task& task : tasks_) task.manager.say(kOut);
  }

  void put_all() const {
    for (size_t i = 0; i < tasks_.size(); i++) tasks_[i].ask(put(static_cast<int>(i)), kPutDone);
  }

  int64_t barriers() const {
    protocol::Packet packet;
    EXPECT_TRUE(protocol::send_packet(control_.get(), protocol::Packet(protocol::kPmixAsk)));
    EXPECT_EQ(protocol::receive_packet(control_.get(), packet, kPatience), protocol::Received::kPacket);
    return packet.number(kBarrierKey).value_or(-1);
  }

  UniqueFd control_;
  std::thread thread_;
  std::vector<Task> tasks_;
};

TEST_F(PmiRelay, ANewManagerIsToldWhatWasPut) {
  add_tasks(2);
  put_all();
  pass_barrier();
  EXPECT_EQ(barriers(), 1);
  restart();
  catch_up();
  tasks_[0].ask("cmd=get kvsname=1.0 key=P1\n", "cmd=get_result rc=0 value=two words=1\n");
}

TEST_F(PmiRelay, WhoWaitsInABarrierWaitsInTheNewOne) {
  add_tasks(2);
  put_all();
  pass_barrier();
  tasks_[0].program.say(kIn);
  EXPECT_EQ(tasks_[0].manager.line(), kIn);
  restart();
  catch_up();
  EXPECT_EQ(tasks_[0].manager.line(), kIn);
  EXPECT_FALSE(tasks_[0].program.readable(100));
  tasks_[1].program.say(kIn);
  EXPECT_EQ(tasks_[1].manager.line(), kIn);
  for (const Task& task : tasks_) task.manager.say(kOut);
  for (const Task& task : tasks_) EXPECT_EQ(task.program.line(), kOut);
}

TEST_F(PmiRelay, ABarrierThatOneHasPassedIsPassedByTheOther) {
  add_tasks(2);
  put_all();
  for (const Task& task : tasks_) task.program.say(kIn);
  for (const Task& task : tasks_) EXPECT_EQ(task.manager.line(), kIn);
  tasks_[0].manager.say(kOut);
  EXPECT_EQ(tasks_[0].program.line(), kOut);
  restart();
  catch_up();
  EXPECT_EQ(tasks_[1].program.line(), kOut);
  pass_barrier();
}

TEST_F(PmiRelay, ABarrierThatAnotherNodeHasPassedIsPassed) {
  add_tasks(1);
  put_all();
  tasks_[0].program.say(kIn);
  EXPECT_EQ(tasks_[0].manager.line(), kIn);
  restart(1);
  catch_up();
  EXPECT_EQ(tasks_[0].program.line(), kOut);
}

TEST_F(PmiRelay, OneThatHasNotBegunIsIntroducedOnce) {
  add_task();
  tasks_[0].program.say(kInit);
  EXPECT_EQ(tasks_[0].manager.line(), kInit);
  restart();  // its proxy has introduced it to the new manager
  EXPECT_EQ(tasks_[0].program.line(), kInitDone);
  EXPECT_FALSE(tasks_[0].manager.readable(100));
  tasks_[0].ask(put(0), kPutDone);
}

TEST_F(PmiRelay, AQuestionWithoutAnAnswerIsAskedAgain) {
  add_tasks(1);
  const std::string get = "cmd=get kvsname=1.0 key=P9\n";
  tasks_[0].program.say(get);
  EXPECT_EQ(tasks_[0].manager.line(), get);
  restart();
  EXPECT_EQ(tasks_[0].manager.line(), get);
  tasks_[0].manager.say("cmd=get_result rc=1\n");
  EXPECT_EQ(tasks_[0].program.line(), "cmd=get_result rc=1\n");
}

TEST_F(PmiRelay, NamesAreGivenBackUnlessTheyWereTakenBack) {
  add_tasks(1);
  const std::string publish = "cmd=publish_name service=door port=here\n";
  tasks_[0].ask("cmd=publish_name service=gone port=there\n", "cmd=publish_result info=ok\n");
  tasks_[0].ask("cmd=unpublish_name service=gone\n", "cmd=unpublish_result info=ok\n");
  tasks_[0].ask(publish, "cmd=publish_result info=ok\n");
  restart();
  EXPECT_EQ(tasks_[0].manager.line(), publish);
  tasks_[0].manager.say("cmd=publish_result info=ok\n");
  tasks_[0].ask(put(0), kPutDone);
}

TEST_F(PmiRelay, PmiTwoIsHandedOnAsItIs) {
  add_task();
  const std::string init = "cmd=init pmi_version=2 pmi_subversion=0\n";
  tasks_[0].ask(init, "cmd=response_to_init rc=0 pmi_version=2 pmi_subversion=0\n");
  tasks_[0].program.say("    10cmd=hello;");
  char bytes[16];
  ASSERT_TRUE(tasks_[0].manager.readable(kPatience));
  EXPECT_EQ(::recv(tasks_[0].manager.fd.get(), bytes, sizeof bytes, MSG_WAITALL), 16);
}

TEST_F(PmiRelay, TheEndOfTheManagerIsSeen) {
  add_tasks(1);
  tasks_[0].manager.say("cmd=finalize_ack rc=0\n");
  tasks_[0].manager.fd.reset();
  EXPECT_EQ(tasks_[0].program.line(), "cmd=finalize_ack rc=0\n");
  EXPECT_EQ(tasks_[0].program.line(), "");
}

}  // namespace
}  // namespace icp::pmi

// SPDX-License-Identifier: GPL-2.0-or-later
// What a message costs is known before it is parsed.
#include "engine/image/wire_scan.h"

#include <gtest/gtest.h>

#include "engine/image/image.pb.h"

namespace icp {
namespace {

// What was read of the text before the answer.
std::optional<std::string> excess(const std::string& text, uint64_t& read) {
  read = 0;
  return find_excess(*pb::Capsule::descriptor(), reinterpret_cast<const uint8_t*>(text.data()), text.size(),
                     [&read](uint64_t bytes) { read = bytes; });
}

std::string repeated(const std::string& what, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; i++) text += what;
  return text;
}

pb::Capsule ordinary(int processes) {
  pb::Capsule capsule;
  for (int i = 0; i < processes; i++) {
    pb::Process& process = *capsule.add_processes();
    process.set_pid(100 + i);
    process.set_comm("program");
    for (int t = 0; t < 4; t++) {
      pb::Thread& thread = *process.add_threads();
      thread.set_gpr(std::string(216, 'r'));
      thread.set_xstate(std::string(2696, 'x'));
      thread.add_pending(std::string(128, 's'));
    }
    for (int m = 0; m < 60; m++) {
      pb::Mapping& mapping = *process.mutable_memory()->add_mappings();
      mapping.set_start(0x7f0000000000 + m * 0x100000);
      mapping.set_end(0x7f0000001000 + m * 0x100000);
      mapping.set_prot(3);
      if (m % 2 == 0) mapping.mutable_file()->set_path("/usr/lib/x86_64-linux-gnu/libsomething.so.6");
    }
    for (int f = 0; f < 200; f++) process.add_fds()->set_fd(f);
    for (int r = 0; r < 16; r++) process.add_rlimits()->set_soft(~0ull);
  }
  return capsule;
}

TEST(WireScan, OrdinaryStatesAreFarFromTheirBudget) {
  for (const int processes : {1, 100, 2000}) {
    const std::string text = ordinary(processes).SerializeAsString();
    uint64_t read = 0;
    EXPECT_EQ(excess(text, read), std::nullopt);
    EXPECT_EQ(read, text.size());
    EXPECT_LT(parsed_cost(*pb::Capsule::descriptor(), text), kFreeCost + text.size() * kCostPerByte / 2);
  }
}

TEST(WireScan, CountsNoLessThanIsAllocated) {
  const pb::Capsule capsule = ordinary(50);
  EXPECT_GE(parsed_cost(*pb::Capsule::descriptor(), capsule.SerializeAsString()), capsule.SpaceUsedLong());
  pb::Capsule small;
  for (int i = 0; i < 1000; i++) {
    small.add_processes();
    small.add_files()->mutable_regular();
    small.mutable_sysv()->add_semaphores()->add_values(i);
    small.mutable_sysv()->mutable_semaphores(0)->add_values(1);
  }
  EXPECT_GE(parsed_cost(*pb::Capsule::descriptor(), small.SerializeAsString()), small.SpaceUsedLong());
}

TEST(WireScan, SmallFilesOfManyObjectsAreRefusedEarly) {
  // processes {}, files {}, sysv { semaphores {} }, and a field that is not known.
  const std::string cases[] = {std::string("\x0a\0", 2), std::string("\x12\0", 2), std::string("\x22\2\x12\0", 4),
                               std::string("\xf8\1\0", 3), std::string("\xfa\1\0", 3)};
  for (const std::string& one : cases) {
    uint64_t read = 0;
    EXPECT_TRUE(excess(repeated(one, 4'000'000), read)) << testing::PrintToString(one);
    EXPECT_LT(read, one.size() * 4'000'000 / 2);
  }
  // One packed array: sysv { semaphores { values: 0 0 0 ... } }
  pb::Capsule capsule;
  pb::SemaphoreSet& set = *capsule.mutable_sysv()->add_semaphores();
  for (int i = 0; i < 8'000'000; i++) set.add_values(0);
  uint64_t read = 0;
  EXPECT_TRUE(excess(capsule.SerializeAsString(), read));
  // Groups, and messages in messages, of which there are none.
  EXPECT_TRUE(excess("\x0b", read));
}

TEST(WireScan, LeavesWhatIsNoMessageToTheParser) {
  const std::string text = ordinary(1).SerializeAsString();
  for (size_t length = 0; length < text.size(); length++) {
    uint64_t read = 0;
    EXPECT_EQ(excess(text.substr(0, length), read), std::nullopt);
    EXPECT_LE(read, length);
  }
  uint64_t read = 0;
  EXPECT_EQ(excess(std::string(20, '\xff'), read), std::nullopt);
  EXPECT_EQ(excess(std::string("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\1", 11), read), std::nullopt);
  EXPECT_EQ(excess(std::string("\0\0", 2), read), std::nullopt);
}

}  // namespace
}  // namespace icp

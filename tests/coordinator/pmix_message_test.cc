// SPDX-License-Identifier: GPL-2.0-or-later
// Messages as an Open MPI 4.1.4 with PMIx 4.2.2 sent them under srun --mpi=pmix.
#include <gtest/gtest.h>

#include <stdexcept>

#include "coordinator/pmix/message.h"

namespace icp::pmix {
namespace {

using namespace std::string_literals;

std::string hello_bytes(const std::string& name, const std::string& kind = "\0"s) {
  const std::string body = "native\0"s + "\0\0\0\x08\xe7\x03\0\0\xe3\x03\0\0"s + kind + name + "\0\0\0\0\0"s +
                           "4.2.2rc2\0v41\0\x01hash\0\0"s;
  return "\xff\xff\xff\xff\xff\xff\xff\xff"s + static_cast<char>(body.size()) + "\0\0\0\0\0\0\0"s + body;
}

TEST(PmixMessage, ComesInPieces) {
  const std::string bytes = Message{1, 103, "\x02\x02 data"}.encode() + Message{0, 7, ""}.encode();
  std::string have;
  std::vector<Message> taken;
  for (const char byte : bytes) {
    have += byte;
    while (auto message = take_message(have)) taken.push_back(*message);
  }
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_EQ(taken[0].tag, 103u);
  EXPECT_EQ(taken[0].body, "\x02\x02 data");
  EXPECT_EQ(taken[1].sender, 0u);
  EXPECT_TRUE(have.empty());
}

TEST(PmixMessage, TooLongAnOneIsRefused) {
  std::string bytes("\0\0\0\1\0\0\0\x67\xff\xff\xff\xff\0\0\0\0", 16);
  EXPECT_THROW(take_message(bytes), std::runtime_error);
}

TEST(PmixMessage, HelloNamesItsNameSpace) {
  std::string bytes = hello_bytes("slurm.pmix.2.0") + "more";
  std::string part = bytes.substr(0, 40);
  EXPECT_FALSE(take_hello(part));
  auto hello = take_hello(bytes);
  ASSERT_TRUE(hello);
  EXPECT_EQ(hello->name_space, "slurm.pmix.2.0");
  EXPECT_EQ(bytes, "more");
  EXPECT_EQ(hello->encode(), hello_bytes("slurm.pmix.2.0"));
  hello->name_space = "slurm.pmix.1234.10";
  EXPECT_EQ(hello->encode(), hello_bytes("slurm.pmix.1234.10"));
}

TEST(PmixMessage, HelloOfAToolIsRefused) {
  std::string bytes = hello_bytes("slurm.pmix.2.0", "\x03"s);
  EXPECT_THROW(take_hello(bytes), std::runtime_error);
}

TEST(PmixMessage, DamagedHellosAreRefused) {
  const std::string good = hello_bytes("slurm.pmix.2.0");
  for (size_t at = 0; at < good.size(); at++) {
    for (const char value : {'\0', '\x7f', '\xff'}) {
      std::string bytes = good;
      bytes[at] = value;
      try {
        take_hello(bytes);
      } catch (const std::runtime_error&) {
      }
    }
  }
}

TEST(PmixMessage, Commands) {
  EXPECT_EQ(command_of("\x02\x0d\x02"s), kRegister);
  EXPECT_EQ(command_of("\x02\x05"s), kFinalize);
  EXPECT_EQ(command_of("\0\0"s), std::nullopt);
  EXPECT_EQ(command_of("\x02"s), std::nullopt);
}

TEST(PmixMessage, NameSpaceOfAnotherStep) {
  const std::string fence = "\x02\x03\x02\x01\x02\x1eslurm.pmix.2.0\0\xfe\xff\xff\xff\x0f\x02\0"s;
  EXPECT_EQ(with_name_space(fence, "slurm.pmix.2.0", "slurm.pmix.31.0"),
            "\x02\x03\x02\x01\x02\x20slurm.pmix.31.0\0\xfe\xff\xff\xff\x0f\x02\0"s);
  EXPECT_EQ(with_name_space(fence, "slurm.pmix.2", "slurm.pmix.3"), fence) << "another text that begins like it";
}

// An answer to a request for data is a block within a message.
TEST(PmixMessage, NameSpaceWithinABlock) {
  const std::string rest = "\x01\x02\x18" + std::string(100, 'x');
  const std::string inner = "\x02\x1eslurm.pmix.2.0\0"s + rest, longer = "\x02\x20slurm.pmix.31.0\0"s + rest;
  const auto answer = [](const std::string& block) {
    const size_t twice = block.size() * 2;
    return "\x02\0\x02"s + static_cast<char>((twice & 0x7f) | 0x80) + static_cast<char>(twice >> 7) + block;
  };
  EXPECT_EQ(with_name_space(answer(inner), "slurm.pmix.2.0", "slurm.pmix.31.0"), answer(longer));
  EXPECT_EQ(with_name_space(answer(longer), "slurm.pmix.31.0", "slurm.pmix.2.0"), answer(inner));
}

}  // namespace
}  // namespace icp::pmix

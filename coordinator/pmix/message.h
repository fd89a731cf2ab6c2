// SPDX-License-Identifier: GPL-2.0-or-later
// The messages between a PMIx client and its server, as far as a relay has to know them. Sources: openpmix 4.2 and 5.0,
// src/mca/ptl (headers and the first message) and src/mca/bfrops (what is in a body).
//
// A message is a header of four 32-bit numbers in network order (index of the sender, tag, bytes of the body, nothing)
// and the body. A client's body begins with a command. Numbers in a body are of variable length (psquash/flex128), a
// text is its length with the NUL, and its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace icp::pmix {

enum Command : uint8_t {
  kCommit = 2,     // what the process publishes; its server keeps it
  kFence = 3,      // a collective: answered when all have come
  kFinalize = 5,   // the last message of a client
  kRegister = 13,  // for events
  kDeregister = 14,
  kJobControl = 18,  // files that the server removes at the end, and the like
  kStopOutput = 29,
};

constexpr size_t kHeaderBytes = 16;
constexpr uint32_t kFirstTag = 100;       // of requests, which are answered under their tag; those below are told
constexpr size_t kMostBytes = 1u << 30;   // of one message; PMIx's own limit is lower
constexpr size_t kMostHello = 64u << 10;  // bytes of a first message; PMIx's own limit is lower

struct Message {
  uint32_t sender = 0, tag = 0;
  std::string body;

  std::string encode() const;
};

// Takes the first message from the front of `bytes` when it is there as a whole. Throws std::runtime_error when it is
// longer than any is.
std::optional<Message> take_message(std::string& bytes);

// The first message of a client: who it is. Its own length is in the host's order (ptl_base_fns.c).
struct Hello {
  std::string before;  // up to the name space: header, security module and its credential, kind of the process
  std::string name_space;
  std::string after;  // rank, version, formats

  std::string encode() const;
};
// The same for it. Throws, too, when it is no such message, or that of a tool rather than of a process of the job.
std::optional<Hello> take_hello(std::string& bytes);

// The command of a client's message; nothing in a message of other formats.
std::optional<uint8_t> command_of(std::string_view body);

// The body with another name space: its server knows this step by one name, and the processes by that of the step they
// began in. Only texts that are the name as a whole are it.
std::string with_name_space(const std::string& body, const std::string& from, const std::string& to);

}  // namespace icp::pmix

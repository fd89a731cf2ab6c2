// SPDX-License-Identifier: GPL-2.0-or-later
// What a protobuf message will cost before it is parsed.
//
// Two bytes of a file may stand for an object of hundreds ("\x0a\x00" is a whole process), so the size of a hostile
// file says nothing of the memory that it takes. This walks the wire format by the message's descriptor, counts what
// the parser would make, and allocates nothing itself.
#pragma once

#include <google/protobuf/descriptor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace icp {

// Bytes of memory that the parsed message may take: kFreeCost and kCostPerByte for each byte on the wire. States of
// real programs take 1 to 4 times their size.
inline constexpr uint64_t kFreeCost = 8 << 20, kCostPerByte = 7;

// The serialised message is `data[0..size)`; `have(n)` is called before anything below n is looked at, so that whoever
// reads a file need not read further than to the first thing that is too much. Returns a sentence's end ("more than
// 65536 of icp.pb.Process"), or nothing: the message fits its budget, or is none, which parsing it will tell.
std::optional<std::string> find_excess(const google::protobuf::Descriptor& type, const uint8_t* data, uint64_t size,
                                       const std::function<void(uint64_t)>& have);

// The cost that find_excess() counts for a whole message.
uint64_t parsed_cost(const google::protobuf::Descriptor& type, const std::string& text);

}  // namespace icp

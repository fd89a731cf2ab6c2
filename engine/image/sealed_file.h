// SPDX-License-Identifier: GPL-2.0-or-later
// A small file that carries its own checksum: manifest.icp, state.icp.
//
//   0  magic "ICPSEAL\n"    8  format (u32)    12  low 32 bits of XXH3-64 of the file's name
//  16  payload bytes (u64)  24  XXH3-64 of the payload (u64)   32  payload
#pragma once

#include <google/protobuf/message.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/image/image_layout.h"

namespace icp {

// The whole file for `payload`. The name in it tells a manifest from a state file that was put in its place.
std::string seal(std::string_view name, std::string_view payload, uint32_t format = kImageFormat);

// Reads the message in an open sealed file of at most `limit` payload bytes; kImage names `path`. Its size is looked at
// before anything is read, and what it will cost (wire_scan.h) while it is read: what is refused costs no more than was
// read of it. `whole_xxh3`, when given, receives the XXH3-64 of the whole file.
void unseal(int fd, std::string_view name, uint64_t limit, const std::string& path, google::protobuf::Message& message,
            uint64_t* whole_xxh3 = nullptr);

// XXH3-64 of some bytes.
uint64_t hash_of(std::string_view bytes);

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// A small file that carries its own checksum: manifest.icp, state.icp.
//
//   0  magic "ICPSEAL\n"    8  format (u32)    12  low 32 bits of XXH3-64 of the file's name
//  16  payload bytes (u64)  24  XXH3-64 of the payload (u64)   32  payload
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace icp {

// The whole file for `payload`. The name in it tells a manifest from a state file that was put in its place.
std::string seal(std::string_view name, std::string_view payload);

// Reads the payload of an open sealed file of at most `limit` payload bytes; kImage names `path`. `whole_xxh3`, when
// given, receives the XXH3-64 of the whole file.
std::string unseal(int fd, std::string_view name, uint64_t limit, const std::string& path,
                   uint64_t* whole_xxh3 = nullptr);

// XXH3-64 of some bytes.
uint64_t hash_of(std::string_view bytes);

}  // namespace icp

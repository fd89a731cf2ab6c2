// SPDX-License-Identifier: GPL-2.0-or-later
// Files and memory of an image in words, for icp show. Pure functions; the text may hold control characters of an
// image's names: printable() before it goes to a terminal.
#pragma once

#include <string>

#include "engine/image/image.pb.h"

namespace icp {

std::string kind_of(const pb::OpenFile& file);    // "regular", "pipe", "eventfd" ...
std::string describe(const pb::OpenFile& file);   // "/home/u/log, byte 123 of 456, write only, append"
std::string kind_of(const pb::Mapping& mapping);  // "anonymous", "private file" ...
std::string kind_of(const pb::MemoryObject& object);
std::string state_of(const pb::Process& process);   // "running", "stopped", "zombie"
uint64_t mapped_bytes(const pb::Process& process);  // all mappings together; what is mapped is not what is stored

}  // namespace icp

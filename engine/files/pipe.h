// SPDX-License-Identifier: GPL-2.0-or-later
// Pipes and FIFOs, with the data in flight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& pipe_kind();

// Data waiting in a pipe, copied with tee(2): it stays there.
struct PipeContent {
  std::string data;
  std::vector<uint32_t> packets;  // lengths, if the data came in packet mode (O_DIRECT)
};

// `reader` is a descriptor with read access; its capacity is `capacity` bytes. Throws kSystem when the pipe's
// content cannot be copied.
PipeContent peek_pipe(int reader, int capacity, bool packet_mode);

// Makes one pipe or FIFO of an image: all open file descriptions of it. pipe_restore.cc.
void create_pipe(RestoreContext& context, const std::vector<const pb::OpenFile*>& files);

}  // namespace icp

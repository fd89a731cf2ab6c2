// SPDX-License-Identifier: GPL-2.0-or-later
// POSIX message queues that are open (mq_open(3)), with their messages. They belong to the IPC namespace, which is the
// capsule's own after a restart.
#pragma once

#include "engine/files/file_kind.h"

namespace icp {

const FileKind& posix_queue_kind();

}  // namespace icp

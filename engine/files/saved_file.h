// SPDX-License-Identifier: GPL-2.0-or-later
// Regular files of an image, found again although they were renamed, replaced, removed or written to since.
#pragma once

#include "engine/files/image_path.h"

namespace icp {

bool open_for_writing(const pb::OpenFile& file);

// The file that was open, known by its inode (or, where that cannot be, by what it holds), by whatever name of the same
// directory; one that is gone is made again if the image has its content. What has the name now and is another file is
// not touched. Throws kImage or kSystem, naming the file, when there is none to be had.
FoundPath find_saved_file(RestoreContext& context, const pb::OpenFile& file);

// Compares what a file that was open for writing holds with the version, and sees to it by the policy `changed`: what
// is to be done is done by apply_side_effects(), once a file, through `fd`, which stays open till then. Throws kImage
// when it cannot be.
void settle_changes(RestoreContext& context, const pb::OpenFile& file, const FoundPath& found, int fd);

}  // namespace icp

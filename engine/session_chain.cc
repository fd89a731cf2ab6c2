// SPDX-License-Identifier: GPL-2.0-or-later
// A session and the image it writes into, which others may fold (ImageDir::compact) and prune between two versions.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/session_impl.h"

namespace icp {

// The write lock is held (a version has been begun), so nothing changes meanwhile. The indexes in memory describe
// `last_version`. If that has been folded into the latest version, they are loaded from there, which says the same with
// other files. If it has been pruned, its files may be gone: the next version is a full one.
void Session::Impl::follow_chain(const ImageDir& image) {
  if (last_version == 0) return;
  if (last_image != image.path()) return forget_chain();
  try {
    const uint32_t latest = image.latest().value_or(0);
    if (latest > last_version) {
      const VersionReader reader = image.open_version(latest);
      const auto& folded = reader.manifest().folded_from();
      if (std::find(folded.begin(), folded.end(), last_version) != folded.end()) {
        memory.reload(reader);
        last_version = latest;
      }
    }
    if (!image.has_version(last_version)) {
      spdlog::warn("version {} is no longer in {}: the next version is a full one", last_version, image.path());
      forget_chain();
    } else if (config.dedup && !memory.dedup()) {
      memory.begin_dedup(image.open_version(last_version));
    }
  } catch (const Error& error) {
    spdlog::warn("{}: the next version is a full one", error.what());
    forget_chain();
  }
}

void Session::Impl::forget_chain() {
  memory.abandon();
  last_version = 0;
}

// Any doubt makes the version a full one.
void Session::Impl::resume_kept(const ImageDir& image) {
  if (!config.keep_tracking || last_version != 0 || kept_looked_for) return;
  kept_looked_for = true;
  try {
    const uint32_t latest = image.latest().value_or(0);
    if (latest == 0) return;
    const VersionReader reader = image.open_version(latest);
    if (memory.resume(reader, reader.read_state(), processes())) last_version = latest;
  } catch (const Error& error) {
    spdlog::warn("{}: the next version is a full one", error.what());
    memory.abandon();
    last_version = 0;
  }
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/page_hash.h"

#include <xxh_x86dispatch.h>

#include "engine/image/image_layout.h"

namespace icp {

PageHash hash_page(const std::byte* page) {
  const XXH128_hash_t hash = XXH3_128bits_dispatch(page, kPageBytes);  // by the widest vectors there are
  return {hash.low64, hash.high64};
}

PageHash PageHashes::find(uint64_t address) const {
  const uint64_t page = address / kPageBytes, area = page / kAreaPages;
  if (area == last_ && last_area_ != nullptr) return (*last_area_)[page % kAreaPages];
  const auto found = areas_.find(area);
  return found == areas_.end() ? PageHash{} : (*found->second)[page % kAreaPages];
}

void PageHashes::set(uint64_t address, PageHash hash) {
  const uint64_t page = address / kPageBytes, area = page / kAreaPages;
  if (area != last_ || last_area_ == nullptr) {
    auto& found = areas_[area];
    if (!found) found = std::make_unique<Area>();
    last_ = area;
    last_area_ = found.get();
  }
  (*last_area_)[page % kAreaPages] = hash;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// What tells pages apart without looking at them: XXH3-128 of their content.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <unordered_map>

#include "engine/image/image_layout.h"

namespace icp {

struct PageHash {
  uint64_t low = 0, high = 0;
  friend bool operator==(const PageHash&, const PageHash&) = default;
};
static_assert(sizeof(PageHash) == 16);

// Whether the 4096 bytes at `page` are all 0.
inline bool is_zero_page(const std::byte* page) {
  // Nearly every page that is not zero shows it in its first word.
  uint64_t word;
  std::memcpy(&word, page, sizeof word);
  return word == 0 && std::memcmp(page, page + sizeof word, kPageBytes - sizeof word) == 0;
}
// Of the 4096 bytes at `page`.
PageHash hash_page(const std::byte* page);

// The hashes of what a store holds, by address: 16 bytes a page, kept in areas of 2 MiB. Not thread-safe; const members
// are safe side by side.
class PageHashes {
 public:
  // Of the page at `address`; all zeros: not known.
  PageHash find(uint64_t address) const;
  void set(uint64_t address, PageHash hash);
  void clear() {
    areas_.clear();
    last_area_ = nullptr;
  }

 private:
  static constexpr uint64_t kAreaPages = 512;
  using Area = std::array<PageHash, kAreaPages>;
  std::unordered_map<uint64_t, std::unique_ptr<Area>> areas_;
  // Pages come by ascending address.
  uint64_t last_ = ~0ull;
  Area* last_area_ = nullptr;
};

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// Entries of a table, packed and not, against an array.
#include "engine/image/table_entries.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>

namespace icp {
namespace {

constexpr unsigned kEntries = 512;
using Entries = TableEntries<uint64_t, kEntries>;

void expect_same(const Entries& entries, const Entries::All& wanted, const std::string& what) {
  EXPECT_EQ(entries.all(), wanted) << what;
  for (unsigned slot = 0; slot < kEntries; ++slot) ASSERT_EQ(entries.at(slot), wanted[slot]) << what << " " << slot;
  for (const auto& [first, last] : {std::pair(0u, kEntries), std::pair(17u, 300u), std::pair(511u, 512u)}) {
    Entries::All seen{};
    unsigned next = first;
    entries.for_each(first, last, [&](unsigned slot, uint64_t entry) {
      EXPECT_GE(slot, next);
      next = slot + 1;
      seen[slot] = entry;
    });
    for (unsigned slot = first; slot < last; ++slot) ASSERT_EQ(seen[slot], wanted[slot]) << what << " " << slot;
  }
}

TEST(TableEntries, AreWhatAnArrayHolds) {
  std::mt19937_64 random(14);
  for (int round = 0; round < 300; ++round) {
    Entries entries;
    Entries::All wanted{};
    const unsigned changes = static_cast<unsigned>(random() % 12), most = round % 3 == 0 ? 512 : 20;
    for (unsigned i = 0; i <= changes; ++i) {
      const auto begin = static_cast<unsigned>(random() % kEntries);
      const auto end = std::min<unsigned>(kEntries, begin + 1 + static_cast<unsigned>(random() % most));
      const uint64_t first = random() % 4 == 0 ? 0 : random() % 1000 + 1, step = random() % 2;
      for (unsigned slot = begin; slot < end; ++slot)
        entries[slot] = wanted[slot] = first == 0 ? 0 : first + step * (slot - begin);
      if (random() % 2 == 0) entries.pack();
      expect_same(entries, wanted, fmt::format("round {}", round));
    }
    Entries set;
    set.set_all(wanted);
    expect_same(set, wanted, fmt::format("set, round {}", round));
  }
}

TEST(TableEntries, OfPointersAreNoNumbers) {
  std::array<char, 4> bytes{};
  TableEntries<char*, kEntries> entries;
  for (unsigned i = 0; i < bytes.size(); ++i) entries[100 + i] = &bytes[i];  // one after the other in memory
  entries.pack();
  for (unsigned i = 0; i < bytes.size(); ++i) EXPECT_EQ(entries.at(100 + i), &bytes[i]);
  EXPECT_EQ(entries.at(99), nullptr);
  EXPECT_EQ(entries.at(104), nullptr);
}

}  // namespace
}  // namespace icp

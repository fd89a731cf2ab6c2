// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/page_index_codec.h"

#include <xxhash.h>

#include <algorithm>

#include "engine/image/compression.h"

namespace icp {
namespace {

using LeafEntries = TableEntries<uint64_t, kTableEntries>::All;

// The four kinds of step in a leaf of runs: the low two bits of each step's first number.
enum Step : uint64_t {
  kSkip = 0,  // (n - 1) pages without location
  kOne = 1,   // one page of version slot n
  kRun = 2,   // pages of version slot n; then length - 2
  kJump = 3,  // pages of version slot n whose first record is not the expected one; then length - 1, difference
};

// One version that a leaf refers to, and which record its next page should have.
//
// Pages are mostly put by ascending address, so from one page of a version to the next the record grows by one. Where
// the version wrote the whole area and later versions replaced single pages, it grows with the address instead
// ("dense"). The encoder takes what is right more often.
struct Slot {
  uint32_t version = 0;
  bool dense = false;
  bool used = false;
  uint64_t record = 0;  // of the page after the last one
  uint64_t page = 0;    // that page's place in the table

  uint64_t expected(uint64_t at) const { return dense && used ? record + (at - page) : record; }
  void pass(uint64_t at, uint64_t first_record, uint64_t length) {
    used = true;
    record = first_record + length;
    page = at + length;
  }
};

// The versions of a leaf, newest first.
class VersionSlots {
 public:
  explicit VersionSlots(const LeafEntries& entries) {
    for (unsigned at = 0; at < kTableEntries; ++at) {
      if (entries[at] != 0) add(entries[at], at);
    }
    for (Counted& counted : slots_) {
      counted.slot = {counted.slot.version, counted.dense > counted.sparse, false, counted.first, 0};
    }
    std::sort(slots_.begin(), slots_.end(),
              [](const Counted& a, const Counted& b) { return a.slot.version > b.slot.version; });
    for (size_t i = 0; i < slots_.size(); ++i) cell(slots_[i].slot.version) = static_cast<uint16_t>(i + 1);
  }

  void encode(uint32_t own, ByteWriter& writer) const {
    const uint32_t newest = slots_.front().slot.version, span = newest - slots_.back().slot.version;
    const size_t map_bytes = (span + 7) / 8;
    const bool mapped = map_bytes + 1 < slots_.size() - 1;
    writer.varint(slots_.size() << 1 | (mapped ? 1 : 0));
    writer.varint(own - newest);
    if (mapped) {
      std::vector<uint8_t> map(map_bytes);
      for (size_t i = 1; i < slots_.size(); ++i) {
        const uint32_t below = newest - slots_[i].slot.version - 1;
        map[below / 8] |= static_cast<uint8_t>(1u << below % 8);
      }
      writer.varint(map_bytes);
      writer.raw(map.data(), map.size());
    } else {
      for (size_t i = 1; i < slots_.size(); ++i) writer.varint(slots_[i - 1].slot.version - slots_[i].slot.version - 1);
    }
    std::vector<size_t> dense;
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].slot.dense) dense.push_back(i);
    }
    writer.varint(dense.size());
    size_t next = 0;
    for (const size_t slot : dense) {
      writer.varint(slot - next);
      next = slot + 1;
    }
    // Versions that write alike have records alike where they meet the table.
    uint64_t before = 0;
    for (const Counted& counted : slots_) {
      writer.zigzag(static_cast<int64_t>(counted.first - before));
      before = counted.first;
    }
  }
  size_t size() const { return slots_.size(); }
  size_t slot_of_version(uint32_t version) { return cell(version) - 1u; }
  Slot& operator[](size_t slot) { return slots_[slot].slot; }

 private:
  struct Counted {
    Slot slot;
    uint64_t first = 0;              // its first page's record
    unsigned dense = 0, sparse = 0;  // how often each guess would be right where they differ
  };

  void add(uint64_t entry, unsigned at) {
    const PageLocation location = unpack(entry);
    if (slots_.empty() || slots_[last_].slot.version != location.version) {
      uint16_t& found = cell(location.version);
      if (found == 0) {
        slots_.push_back({{location.version, true, true, location.record, at}, location.record});
        keys_[static_cast<size_t>(&found - cells_.data())] = location.version;
        found = static_cast<uint16_t>(slots_.size());
      }
      last_ = found - 1u;
    }
    Counted& counted = slots_[last_];
    if (at != counted.slot.page) {
      counted.dense += location.record == counted.slot.expected(at);
      counted.sparse += location.record == counted.slot.record;
    }
    counted.slot.pass(at, location.record, 1);
  }
  // Open addressing; at most 512 of the 1024 cells are taken.
  uint16_t& cell(uint32_t version) {
    size_t at = (version * 2654435761u) >> 22;
    while (cells_[at] != 0 && keys_[at] != version) at = (at + 1) % cells_.size();
    return cells_[at];
  }

  std::vector<Counted> slots_;
  size_t last_ = 0;
  std::array<uint16_t, 1024> cells_{};
  std::array<uint32_t, 1024> keys_{};
};

void encode_runs(const LeafEntries& entries, VersionSlots slots, ByteWriter& writer) {
  for (unsigned at = 0; at < kTableEntries;) {
    const uint64_t first = entries[at];
    unsigned length = 1;
    const uint64_t step = first == 0 ? 0 : 1;
    while (at + length < kTableEntries && entries[at + length] == first + step * length) ++length;
    const unsigned page = at;
    at += length;
    if (first == 0) {
      if (at < kTableEntries) writer.varint((length - 1) << 2 | kSkip);
      continue;
    }
    const size_t slot = slots.slot_of_version(packed_version(first));
    const uint64_t record = unpack(first).record;
    const uint64_t expected = slots[slot].expected(page);
    if (record != expected) {
      writer.varint(slot << 2 | kJump);
      writer.varint(length - 1);
      writer.zigzag(static_cast<int64_t>(record - expected));
    } else if (length == 1) {
      writer.varint(slot << 2 | kOne);
    } else {
      writer.varint(slot << 2 | kRun);
      writer.varint(length - 2);
    }
    slots[slot].pass(page, record, length);
  }
}

// One byte a page: better than runs where pages of many versions are mixed.
void encode_bytes(const LeafEntries& entries, VersionSlots slots, std::vector<uint8_t>& out) {
  struct Jump {
    unsigned page;
    int64_t difference;
  };
  std::vector<Jump> jumps;
  ByteWriter writer(out);
  for (unsigned at = 0; at < kTableEntries; ++at) {
    const uint64_t entry = entries[at];
    if (entry == 0) {
      writer.u8(0);
      continue;
    }
    const size_t slot = slots.slot_of_version(packed_version(entry));
    const uint64_t record = unpack(entry).record;
    const uint64_t expected = slots[slot].expected(at);
    if (record != expected) jumps.push_back({at, static_cast<int64_t>(record - expected)});
    slots[slot].pass(at, record, 1);
    writer.u8(static_cast<uint8_t>(slot + 1));
  }
  writer.varint(jumps.size());
  unsigned next = 0;
  for (const Jump& jump : jumps) {
    writer.varint(jump.page - next);
    writer.zigzag(jump.difference);
    next = jump.page + 1;
  }
}

// Two bytes a page, compressed: better than either in the index of a job that writes all the time, where pages of many
// versions are mixed and most of what each of them wrote is gone. First which version, then how its record differs from
// an expected one: these numbers are few and small, so that each takes some bits.
//
// The records of a version are in the order of its addresses several times over, once for each pre-copy round that
// found something. What comes next is expected in each of these orders, the last used one first.
class Orders {
 public:
  static constexpr unsigned kMost = 4;
  static constexpr int64_t kLeast = -8, kValues = 63;  // differences [kLeast, kLeast + kValues) have codes
  static constexpr uint8_t kFarAway = 255;             // another difference, from the last used order: a new one begins

  explicit Orders(const Slot& slot) : count_(1) { orders_[0] = slot; }

  uint8_t code_of(unsigned at, uint64_t record) const {
    uint8_t best = kFarAway;
    int64_t least = kValues;
    for (unsigned i = 0; i < count_; ++i) {
      const auto difference = static_cast<int64_t>(record - orders_[i].expected(at));
      if (difference < kLeast || difference >= kLeast + kValues || std::abs(difference) >= least) continue;
      least = std::abs(difference);
      best = static_cast<uint8_t>(i * kValues + difference - kLeast);
    }
    return best;
  }
  // The order that a code means, moved to the front, and the difference.
  std::pair<Slot&, int64_t> find(uint8_t code) {
    const auto number = static_cast<unsigned>(code / kValues);
    if (number >= count_) throw DecodeError{"impossible record"};
    std::rotate(orders_.begin(), orders_.begin() + number, orders_.begin() + number + 1);
    return {orders_[0], code % kValues + kLeast};
  }
  const Slot& last() const { return orders_[0]; }
  // A new order, which goes on from the last used one as if it were that one.
  Slot& begin() {
    count_ = std::min(count_ + 1, kMost);
    std::rotate(orders_.begin(), orders_.begin() + count_ - 1, orders_.begin() + count_);
    orders_[0] = orders_[1];
    return orders_[0];
  }

 private:
  std::array<Slot, kMost> orders_;
  unsigned count_;
};

void append_compressed(std::span<const uint8_t> bytes, ByteWriter& writer) {
  std::vector<std::byte> packed;
  const bool smaller = !bytes.empty() && compress_block(Compression::kZstd, std::as_bytes(bytes), packed);
  const std::span<const uint8_t> stored =
      smaller ? std::span(reinterpret_cast<const uint8_t*>(packed.data()), packed.size()) : bytes;
  writer.varint(stored.size());
  writer.raw(stored.data(), stored.size());
}

std::vector<uint8_t> read_compressed(ByteReader& reader, size_t bytes) {
  const auto stored = reader.raw(reader.varint());
  if (stored.size() == bytes) return {stored.begin(), stored.end()};
  std::vector<uint8_t> found(bytes);
  if (stored.size() > bytes ||
      !decompress_block(Compression::kZstd, std::as_bytes(stored), std::as_writable_bytes(std::span(found))))
    throw DecodeError{"pages of a table cannot be decompressed"};
  return found;
}

void encode_planes(const LeafEntries& entries, VersionSlots slots, std::vector<uint8_t>& out) {
  std::vector<Orders> orders;
  for (size_t i = 0; i < slots.size(); ++i) orders.emplace_back(slots[i]);
  std::vector<uint8_t> which(kTableEntries), codes;
  std::vector<int64_t> far_away;
  for (unsigned at = 0; at < kTableEntries; ++at) {
    const uint64_t entry = entries[at];
    if (entry == 0) continue;
    const size_t slot = slots.slot_of_version(packed_version(entry));
    const uint64_t record = unpack(entry).record;
    which[at] = static_cast<uint8_t>(slot + 1);
    const uint8_t code = orders[slot].code_of(at, record);
    codes.push_back(code);
    if (code == Orders::kFarAway) {
      far_away.push_back(static_cast<int64_t>(record - orders[slot].last().expected(at)));
      orders[slot].begin().pass(at, record, 1);
    } else {
      orders[slot].find(code).first.pass(at, record, 1);
    }
  }
  ByteWriter writer(out);
  append_compressed(which, writer);
  append_compressed(codes, writer);
  for (const int64_t difference : far_away) writer.zigzag(difference);
}

void add_checksum(std::vector<uint8_t>& out, size_t start) {
  ByteWriter(out).u32(static_cast<uint32_t>(XXH3_64bits(out.data() + start, out.size() - start)));
}

std::span<const uint8_t> check_block(std::span<const uint8_t> block) {
  if (block.size() < sizeof(uint32_t) + 1) throw DecodeError{"table is too short"};
  const auto content = block.first(block.size() - sizeof(uint32_t));
  if (ByteReader(block.last(sizeof(uint32_t))).u32() !=
      static_cast<uint32_t>(XXH3_64bits(content.data(), content.size()))) {
    throw DecodeError{"checksum of the table is wrong"};
  }
  return content;
}

// A version stored as a difference from `above`.
uint32_t decode_version(ByteReader& reader, uint32_t above) {
  const uint64_t difference = reader.varint();
  if (difference >= above) throw DecodeError{"impossible version"};
  return above - static_cast<uint32_t>(difference);
}

// A bit a version below the newest one.
void decode_version_map(ByteReader& reader, std::vector<Slot>& slots) {
  const auto map = reader.raw(reader.varint());
  size_t found = 1;
  for (size_t below = 0; below < map.size() * 8; ++below) {
    if ((map[below / 8] >> below % 8 & 1) == 0) continue;
    if (found == slots.size() || below + 1 >= slots[0].version) throw DecodeError{"impossible version"};
    slots[found++].version = slots[0].version - static_cast<uint32_t>(below) - 1;
  }
  if (found != slots.size()) throw DecodeError{"versions of a table are missing"};
}

std::vector<Slot> decode_slots(ByteReader& reader, uint32_t own) {
  const uint64_t number = reader.varint(), count = number >> 1;
  if (count == 0 || count > kTableEntries) throw DecodeError{"impossible number of versions in a table"};
  std::vector<Slot> slots(count);
  slots[0].version = decode_version(reader, own);
  if ((number & 1) != 0) {
    decode_version_map(reader, slots);
  } else {
    for (size_t i = 1; i < count; ++i) slots[i].version = decode_version(reader, slots[i - 1].version - 1);
  }
  size_t next = 0;
  for (uint64_t left = reader.varint(); left > 0; --left) {
    const uint64_t gap = reader.varint();
    if (gap >= count - next) throw DecodeError{"impossible version in a table"};
    slots[next + gap].dense = true;
    next += gap + 1;
  }
  uint64_t record = 0;
  for (Slot& slot : slots) {
    record += static_cast<uint64_t>(reader.zigzag());
    slot.record = record;
  }
  return slots;
}

// Stores `length` pages from `at` on. `difference` between the records and those expected may be anything: unsigned
// arithmetic wraps where a sum of hostile numbers would overflow, and the result is checked.
void fill(LeafEntries& entries, uint64_t at, uint64_t length, Slot& slot, int64_t difference) {
  if (length == 0 || length > kTableEntries - at) throw DecodeError{"run passes the end of its table"};
  const uint64_t record = slot.expected(at) + static_cast<uint64_t>(difference);
  if (record > kMaxRecord || length - 1 > kMaxRecord - record) throw DecodeError{"impossible record"};
  const uint64_t packed = pack({slot.version, record});
  for (uint64_t i = 0; i < length; ++i) entries[at + i] = packed + i;
  slot.pass(at, record, length);
}

void decode_runs(ByteReader& reader, std::vector<Slot>& slots, LeafEntries& entries) {
  uint64_t at = 0;
  while (reader.left() > 0) {
    const uint64_t step = reader.varint();
    const uint64_t number = step >> 2;
    if ((step & 3) == kSkip) {
      if (number >= kTableEntries - at) throw DecodeError{"run passes the end of its table"};
      at += number + 1;
      continue;
    }
    if (number >= slots.size()) throw DecodeError{"impossible version in a table"};
    uint64_t length = 1;
    int64_t difference = 0;
    if ((step & 3) == kRun) length = reader.varint() + 2;
    if ((step & 3) == kJump) {
      length = reader.varint() + 1;
      difference = reader.zigzag();
    }
    fill(entries, at, length, slots[number], difference);
    at += length;
  }
}

void decode_bytes(ByteReader& reader, std::vector<Slot>& slots, LeafEntries& entries) {
  const auto pages = reader.raw(kTableEntries);
  uint64_t jumps = reader.varint();
  uint64_t next = jumps > 0 ? reader.varint() : kTableEntries;
  for (uint64_t at = 0; at < kTableEntries; ++at) {
    const bool jumping = at == next;
    if (pages[at] == 0) {
      if (jumping) throw DecodeError{"jump of a page that is not there"};
      continue;
    }
    if (pages[at] > slots.size()) throw DecodeError{"impossible version in a table"};
    int64_t difference = 0;
    if (jumping) {
      difference = reader.zigzag();
      next = kTableEntries;
      if (--jumps > 0) {
        const uint64_t gap = reader.varint();
        if (gap >= kTableEntries) throw DecodeError{"jump passes the end of its table"};
        next = at + 1 + gap;
      }
    }
    fill(entries, at, 1, slots[pages[at] - 1u], difference);
  }
  if (jumps > 0 || reader.left() > 0) throw DecodeError{"bytes left over in a table"};
}

void decode_planes(ByteReader& reader, const std::vector<Slot>& slots, LeafEntries& entries) {
  std::vector<Orders> orders(slots.begin(), slots.end());
  const std::vector<uint8_t> which = read_compressed(reader, kTableEntries);
  const auto present = static_cast<size_t>(std::count_if(which.begin(), which.end(), [](uint8_t n) { return n != 0; }));
  const std::vector<uint8_t> codes = read_compressed(reader, present);
  size_t next = 0;
  for (uint64_t at = 0; at < kTableEntries; ++at) {
    if (which[at] == 0) continue;
    if (which[at] > slots.size()) throw DecodeError{"impossible version in a table"};
    Orders& found = orders[which[at] - 1u];
    const uint8_t code = codes[next++];
    if (code == Orders::kFarAway) {
      fill(entries, at, 1, found.begin(), reader.zigzag());
    } else {
      const auto [order, difference] = found.find(code);
      fill(entries, at, 1, order, difference);
    }
  }
  if (reader.left() > 0) throw DecodeError{"bytes left over in a table"};
}

}  // namespace

void encode_leaf(const IndexLeaf& leaf, uint32_t own, std::vector<uint8_t>& out) {
  const size_t start = out.size();
  ByteWriter writer(out);
  const LeafEntries entries = leaf.entries.all();
  const VersionSlots slots(entries);
  writer.u8(kTagLeafRuns);
  slots.encode(own, writer);
  const size_t body = out.size();
  encode_runs(entries, slots, writer);
  const auto try_other = [&](uint8_t tag, const auto& encode) {
    std::vector<uint8_t> other;
    encode(entries, slots, other);
    if (other.size() >= out.size() - body) return;
    out.resize(body);
    out.insert(out.end(), other.begin(), other.end());
    out[start] = tag;
  };
  if (slots.size() < 256 && out.size() - body > kTableEntries) {
    try_other(kTagLeafBytes, encode_bytes);
    if (out.size() - body > kTableEntries + kTableEntries / 8) try_other(kTagLeafPlanes, encode_planes);
  }
  add_checksum(out, start);
}

void encode_table(const IndexTable& table, int level, uint32_t own, std::vector<uint8_t>& out) {
  const size_t start = out.size();
  ByteWriter writer(out);
  writer.u8(static_cast<uint8_t>(level));
  writer.varint(table.used);
  unsigned next = 0;
  StoredTable last;
  table.children.for_each([&](unsigned slot, const IndexNode* child) {
    const StoredTable& stored = child->stored;
    // Tables of one version mostly lie side by side.
    const uint64_t expected = stored.version == last.version ? last.offset + last.length : 0;
    writer.varint(slot - next);
    writer.varint(own - stored.version);
    writer.zigzag(static_cast<int64_t>(stored.offset - expected));
    writer.varint(stored.length);
    next = slot + 1;
    last = stored;
  });
  add_checksum(out, start);
}

void decode_leaf(std::span<const uint8_t> block, uint32_t own, IndexLeaf& leaf) {
  ByteReader reader(check_block(block));
  const uint8_t tag = reader.u8();
  if (tag != kTagLeafRuns && tag != kTagLeafBytes && tag != kTagLeafPlanes)
    throw DecodeError{"table is not of the level it should be"};
  std::vector<Slot> slots = decode_slots(reader, own);
  LeafEntries entries{};
  if (tag == kTagLeafRuns) {
    decode_runs(reader, slots, entries);
  } else if (tag == kTagLeafPlanes) {
    decode_planes(reader, slots, entries);
  } else {
    decode_bytes(reader, slots, entries);
  }
  const auto empty = std::count(entries.begin(), entries.end(), 0u);
  leaf.used = kTableEntries - static_cast<uint32_t>(empty);
  if (leaf.used == 0) throw DecodeError{"table is empty"};
  leaf.entries.set_all(entries);
}

std::vector<ChildReference> decode_table(std::span<const uint8_t> block, int level, uint32_t own) {
  ByteReader reader(check_block(block));
  // Levels go down by one from the root: tables cannot form a circle.
  if (reader.u8() != level) throw DecodeError{"table is not of the level it should be"};
  const uint64_t count = reader.varint();
  if (count == 0 || count > kTableEntries) throw DecodeError{"impossible number of entries in a table"};
  std::vector<ChildReference> children;
  uint64_t next = 0;
  StoredTable last;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t gap = reader.varint();
    if (gap >= kTableEntries - next) throw DecodeError{"entry beyond its table"};
    StoredTable stored;
    stored.version = decode_version(reader, own);
    const uint64_t expected = stored.version == last.version ? last.offset + last.length : 0;
    stored.offset = expected + static_cast<uint64_t>(reader.zigzag());
    const uint64_t length = reader.varint();
    if (length > kMaxBlockBytes) throw DecodeError{"impossible length of a table"};
    stored.length = static_cast<uint32_t>(length);
    children.push_back({static_cast<unsigned>(next + gap), stored});
    next += gap + 1;
    last = stored;
  }
  if (reader.left() > 0) throw DecodeError{"bytes left over in a table"};
  return children;
}

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/wire_scan.h"

#include <fmt/format.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/image/image.pb.h"

namespace icp {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

constexpr uint64_t kAllocation = 16;                 // malloc's own, for each object
constexpr uint64_t kPointer = 16;                    // to an element; arrays of them grow by doubling
constexpr uint64_t kText = sizeof(std::string) + 1;  // besides what is in it
constexpr uint64_t kGrowth = 3;                      // of an array of numbers: the old one is there beside the new
constexpr uint64_t kUnknown = 48;                    // a field that this program does not know
constexpr size_t kDeepest = 32;                      // messages in messages; protobuf's own limit is 100
constexpr uint64_t kReadAhead = 64 << 10;            // bytes
enum WireType { kVarint = 0, kFixed64 = 1, kLength = 2, kGroup = 3, kFixed32 = 5 };

// The most there may be of some kinds, whatever they cost: more than a node has, and few enough for loops in loops.
uint64_t most_of(const Descriptor* type) {
  static const std::unordered_map<const Descriptor*, uint64_t> limits = {
      {pb::Process::descriptor(), 65'536},      {pb::Thread::descriptor(), 262'144},
      {pb::OpenFile::descriptor(), 1 << 20},    {pb::FileDescriptor::descriptor(), 4 << 20},
      {pb::Mapping::descriptor(), 4 << 20},     {pb::MemoryObject::descriptor(), 1 << 20},
      {pb::ShmSegment::descriptor(), 32'768},   {pb::SemaphoreSet::descriptor(), 32'768},
      {pb::MessageQueue::descriptor(), 32'768}, {pb::Task::descriptor(), 65'536},
  };
  const auto found = limits.find(type);
  return found == limits.end() ? ~0ull : found->second;
}

// What a message type is made of.
struct Shape {
  uint64_t bytes = 0;  // of an object without its fields
  uint64_t most = 0;
  std::map<uint32_t, const FieldDescriptor*> fields;
  uint64_t seen = 0;
};

class Scan {
 public:
  Scan(const uint8_t* data, uint64_t size, const std::function<void(uint64_t)>& have, uint64_t budget)
      : data_(data), size_(size), budget_(budget), have_(have) {}

  std::optional<std::string> run(const Descriptor& type) {
    stack_.push_back({&shape(&type), size_});
    cost_ = stack_[0].shape->bytes;
    while (!stack_.empty() && !excess_) {
      if (at_ >= stack_.back().end) {
        stack_.pop_back();
      } else if (!field()) {
        break;  // this is no message: the parser finds out at the same place
      }
    }
    return excess_;
  }
  uint64_t cost() const { return cost_; }

 private:
  struct Level {
    Shape* shape;
    uint64_t end;
  };

  Shape& shape(const Descriptor* type) {
    const auto found = shapes_.find(type);
    if (found != shapes_.end()) return found->second;
    Shape& made = shapes_[type];
    const auto* const object = google::protobuf::MessageFactory::generated_factory()->GetPrototype(type);
    made.bytes = object->SpaceUsedLong() + kAllocation;
    made.most = most_of(type);
    for (int i = 0; i < type->field_count(); i++)
      made.fields[static_cast<uint32_t>(type->field(i)->number())] = type->field(i);
    return made;
  }

  void charge(uint64_t bytes) {
    cost_ += bytes;
    if (cost_ > budget_) excess_ = fmt::format("more than {} bytes of memory", budget_);
  }

  bool look(uint64_t bytes) {
    if (bytes > stack_.back().end - at_) return false;
    if (at_ + bytes > had_) {
      had_ = std::min(size_, at_ + bytes + kReadAhead);
      have_(had_);
    }
    return true;
  }

  bool varint(uint64_t& value) {
    value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
      if (!look(1)) return false;
      const uint8_t byte = data_[at_++];
      if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  // False where there is no field.
  bool field() {
    uint64_t tag = 0, length = 0;
    if (!varint(tag) || tag > UINT32_MAX || tag >> 3 == 0) return false;
    Shape& parent = *stack_.back().shape;
    const auto found = parent.fields.find(static_cast<uint32_t>(tag >> 3));
    const FieldDescriptor* const known = found == parent.fields.end() ? nullptr : found->second;
    switch (tag & 7) {
      case kVarint:
        number(known);
        return varint(length);
      case kFixed64:
        number(known);
        return look(8) && (at_ += 8, true);
      case kFixed32:
        number(known);
        return look(4) && (at_ += 4, true);
      case kLength:
        return varint(length) && length <= stack_.back().end - at_ && lengthy(known, length);
      case kGroup:
        excess_ = "groups, which no version has";
        return true;
      default:
        return false;
    }
  }

  void number(const FieldDescriptor* known) {
    if (known == nullptr || known->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE ||
        known->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      charge(kUnknown);
    } else if (known->is_repeated()) {
      charge(8 * kGrowth);
    }
  }

  // A message, a text, or an array of numbers of `length` bytes, which are there.
  bool lengthy(const FieldDescriptor* known, uint64_t length) {
    if (known != nullptr && known->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) return message(*known, length);
    if (known != nullptr && known->cpp_type() != FieldDescriptor::CPPTYPE_STRING && known->is_repeated()) {
      return numbers(*known, length);
    }
    charge((known == nullptr ? kUnknown : kPointer) + kText + 2 * kAllocation + length);
    at_ += length;
    return true;
  }

  bool message(const FieldDescriptor& known, uint64_t length) {
    Shape& inner = shape(known.message_type());
    charge(inner.bytes + kPointer);
    if (++inner.seen > inner.most)
      excess_ = fmt::format("more than {} of {}", inner.most, known.message_type()->full_name());
    if (stack_.size() >= kDeepest) excess_ = "messages too deep in each other";
    stack_.push_back({&inner, at_ + length});
    return true;
  }

  bool numbers(const FieldDescriptor& known, uint64_t length) {
    const bool fixed = known.type() == FieldDescriptor::TYPE_FIXED64 || known.type() == FieldDescriptor::TYPE_FIXED32;
    const bool wide = known.cpp_type() == FieldDescriptor::CPPTYPE_UINT64 ||
                      known.cpp_type() == FieldDescriptor::CPPTYPE_INT64 ||
                      known.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE;
    const uint64_t bytes = wide ? 8 : 4;
    if (fixed) {
      charge(length * kGrowth);
      at_ += length;
      return true;
    }
    for (const uint64_t end = at_ + length; at_ < end && !excess_; at_++) {
      if (!look(1)) return false;
      if (data_[at_] < 0x80) charge(bytes * kGrowth);
    }
    return true;
  }

  const uint8_t* const data_;
  const uint64_t size_, budget_;
  const std::function<void(uint64_t)>& have_;
  uint64_t at_ = 0, had_ = 0, cost_ = 0;
  std::vector<Level> stack_;
  std::unordered_map<const Descriptor*, Shape> shapes_;  // references to what is in it stay good
  std::optional<std::string> excess_;
};

}  // namespace

std::optional<std::string> find_excess(const Descriptor& type, const uint8_t* data, uint64_t size,
                                       const std::function<void(uint64_t)>& have) {
  return Scan(data, size, have, kFreeCost + kCostPerByte * size).run(type);
}

uint64_t parsed_cost(const Descriptor& type, const std::string& text) {
  const std::function<void(uint64_t)> have = [](uint64_t) {};
  Scan scan(reinterpret_cast<const uint8_t*>(text.data()), text.size(), have, ~0ull >> 1);
  scan.run(type);
  return scan.cost();
}

}  // namespace icp

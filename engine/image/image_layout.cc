// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/image_layout.h"

#include <fmt/format.h>

#include <charconv>

namespace icp {

std::string version_dir_name(uint32_t version) { return fmt::format("v{:06}", version); }

std::optional<uint32_t> parse_version_dir_name(std::string_view name) {
  if (name.size() < 7 || name[0] != 'v') return std::nullopt;
  uint32_t version = 0;
  const auto [end, error] = std::from_chars(name.data() + 1, name.data() + name.size(), version);
  if (error != std::errc() || end != name.data() + name.size()) return std::nullopt;
  if (version == 0 || version > kMaxVersion || version_dir_name(version) != name) return std::nullopt;
  return version;
}

std::string temporary_dir_name(uint32_t version, std::string_view node) {
  return fmt::format(".v{:06}.{}.tmp", version, node);
}

bool is_temporary_dir_name(std::string_view name, std::string_view node) {
  if (name.empty() || name[0] != '.') return false;
  const size_t dot = name.find('.', 1);
  if (dot == std::string_view::npos) return false;
  const auto version = parse_version_dir_name(name.substr(1, dot - 1));
  return version && temporary_dir_name(*version, node) == name;
}

std::string fold_dir_name(std::string_view node) { return fmt::format(".fold.{}.tmp", node); }
std::string write_lock_name(std::string_view node) { return fmt::format(".write.{}.lock", node); }
std::string read_lock_name(std::string_view node) { return fmt::format(".read.{}.lock", node); }

std::string session_lock_name(std::string_view node) { return fmt::format(".session.{}.lock", node); }

std::string page_file_name(std::string_view store, uint32_t version) {
  return fmt::format("{}.{}.bin", store, version);
}

std::string index_file_name(std::string_view store, uint32_t version) {
  return fmt::format("{}.{}.idx", store, version);
}

std::optional<std::string> store_of_index_file(std::string_view file, uint32_t version) {
  const std::string suffix = index_file_name("", version);
  if (file.size() <= suffix.size() || !file.ends_with(suffix)) return std::nullopt;
  return std::string(file.substr(0, file.size() - suffix.size()));
}

bool is_safe_name(std::string_view name) {
  if (name.empty() || name.size() > 200 || name[0] == '.') return false;
  for (const char c : name) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!letter && !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-') return false;
  }
  return true;
}

}  // namespace icp

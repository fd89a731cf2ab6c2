// SPDX-License-Identifier: GPL-2.0-or-later
// Names and limits of the files of an image (docs/image-format.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace icp {

inline constexpr uint32_t kImageFormat = 3;
// Of a manifest whose version has AddressSpace.shared_pages, which a program that knows 3 alone would leave out.
inline constexpr uint32_t kSharedPagesFormat = 4;
// Of a manifest whose version keeps directories, which a program that knows 4 alone would leave as they are.
inline constexpr uint32_t kDirectoriesFormat = 5;
// A page's place is packed into 64 bits in the index: 24 bits of version, 40 of record.
inline constexpr uint32_t kMaxVersion = (1u << 24) - 1;
// One less than fits, so that "next record" never carries into the version.
inline constexpr uint64_t kMaxRecord = (1ull << 40) - 2;
inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kMaxManifestBytes = 64ull << 20;
inline constexpr uint64_t kMaxStateBytes = 1ull << 30;
inline constexpr std::string_view kManifestName = "manifest.icp";
inline constexpr std::string_view kStateName = "state.icp";
// Of versions that keep whole directories: the list of what is in them, and the store of its content.
inline constexpr std::string_view kDirectoriesName = "directories.icp";
inline constexpr std::string_view kDirectoriesStore = "directories";
// What the manifest of a version is called once the version is pruned: what is left of it serves later versions only.
inline constexpr std::string_view kPrunedName = "pruned.icp";

// "v000007"; and back, only from exactly that spelling.
std::string version_dir_name(uint32_t version);
std::optional<uint32_t> parse_version_dir_name(std::string_view name);
// ".v000007.<node>.tmp"; and whether `name` is such a directory of `node`, of whatever version.
std::string temporary_dir_name(uint32_t version, std::string_view node);
bool is_temporary_dir_name(std::string_view name, std::string_view node);
// ".fold.<node>.tmp": where a compaction works.
std::string fold_dir_name(std::string_view node);
// ".write.<node>.lock" and ".read.<node>.lock" (image_lock.h).
std::string write_lock_name(std::string_view node);
std::string read_lock_name(std::string_view node);
std::string session_lock_name(std::string_view node);

std::string page_file_name(std::string_view store, uint32_t version);
std::string index_file_name(std::string_view store, uint32_t version);
// The store of an index file of `version`, if `file` is the name of one.
std::optional<std::string> store_of_index_file(std::string_view file, uint32_t version);

// Letters, digits, '.', '_' and '-', not starting with a dot, at most 200 bytes: cannot leave its directory.
bool is_safe_name(std::string_view name);

}  // namespace icp

// SPDX-License-Identifier: GPL-2.0-or-later
// Reads two symbols of a plugin from its file (elf(5)): it is not loaded, since that would run its code and want all of
// Slurm's symbols.
#include <elf.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "coordinator/icp/doctor/slurm_files.h"

namespace icp::doctor {

namespace {

class ElfFile {
 public:
  explicit ElfFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    if (!take(0, header_) || std::memcmp(header_.e_ident, ELFMAG, SELFMAG) != 0 ||
        header_.e_ident[EI_CLASS] != ELFCLASS64 || header_.e_shentsize != sizeof(Elf64_Shdr))
      header_ = {};
  }

  // Up to `most` bytes of what a dynamic symbol stands for.
  std::string symbol(const std::string& name, size_t most) const {
    for (size_t i = 0; i < header_.e_shnum; i++) {
      Elf64_Shdr table{}, strings{};
      if (!section(i, table) || table.sh_type != SHT_DYNSYM || !section(table.sh_link, strings)) continue;
      for (uint64_t at = 0; at + sizeof(Elf64_Sym) <= table.sh_size; at += sizeof(Elf64_Sym)) {
        Elf64_Sym entry{};
        if (!take(table.sh_offset + at, entry)) return {};
        if (entry.st_shndx != SHN_UNDEF && text(strings.sh_offset + entry.st_name) == name) return content(entry, most);
      }
    }
    return {};
  }

 private:
  template <typename T>
  bool take(uint64_t offset, T& value) const {
    if (offset > bytes_.size() || bytes_.size() - offset < sizeof value) return false;
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return true;
  }
  bool section(uint64_t number, Elf64_Shdr& section) const {
    return number < header_.e_shnum && header_.e_shoff < bytes_.size() &&
           take(header_.e_shoff + number * sizeof(Elf64_Shdr), section);
  }
  std::string text(uint64_t offset) const {
    if (offset >= bytes_.size()) return {};
    return {bytes_.data() + offset, ::strnlen(bytes_.data() + offset, bytes_.size() - offset)};
  }
  std::string content(const Elf64_Sym& entry, size_t most) const {
    Elf64_Shdr in{};
    if (!section(entry.st_shndx, in) || in.sh_type == SHT_NOBITS || entry.st_value < in.sh_addr) return {};
    const uint64_t offset = in.sh_offset + (entry.st_value - in.sh_addr);
    const size_t size = std::min<size_t>(entry.st_size, most);
    if (offset > bytes_.size() || bytes_.size() - offset < size) return {};
    return bytes_.substr(offset, size);
  }

  std::string bytes_;
  Elf64_Ehdr header_{};
};

}  // namespace

PluginFacts plugin_facts(const std::string& path) {
  const ElfFile file(path);
  PluginFacts facts;
  if (const std::string number = file.symbol("plugin_version", sizeof facts.slurm); number.size() == sizeof facts.slurm)
    std::memcpy(&facts.slurm, number.data(), sizeof facts.slurm);
  facts.release = file.symbol("spank_icp_release", 64).c_str();  // up to the zero
  return facts;
}

}  // namespace icp::doctor

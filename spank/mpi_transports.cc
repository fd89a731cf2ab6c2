// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/mpi_transports.h"

#include <dirent.h>

#include <algorithm>

namespace icp::spank {
namespace {

using Variables = std::vector<std::pair<std::string, std::string>>;

struct Library {
  std::vector<std::string> chosen_by;  // any of these: the user knows better
  Variables variables;
};

// UCX: https://openucx.readthedocs.io (UCX_TLS). libfabric: fi_provider(7), fi_mr(3); a cache of its own that watches
// memory by userfaultfd would be in the way of the tracker. Open MPI: names that it does not have may be excluded.
const std::vector<Library>& libraries() {
  static const std::vector<Library> all = {
      {{"UCX_TLS", "UCX_NET_DEVICES"}, {{"UCX_TLS", "tcp,self,posix,sysv,cma"}}},
      {{"FI_PROVIDER"}, {{"FI_PROVIDER", "tcp"}}},
      {{"FI_MR_CACHE_MONITOR"}, {{"FI_MR_CACHE_MONITOR", "disabled"}}},
      {{"OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_mtl", "OMPI_MCA_osc"},
       {{"OMPI_MCA_pml", "ob1"}, {"OMPI_MCA_btl", "^openib,usnic,uct,ofi"}, {"OMPI_MCA_osc", "^ucx"}}},
  };
  return all;
}

bool holds_something(const std::string& directory) {
  DIR* const open = ::opendir(directory.c_str());
  if (open == nullptr) return false;
  bool found = false;
  while (const dirent* const entry = ::readdir(open)) {
    if (entry->d_name[0] != '.') found = true;
  }
  ::closedir(open);
  return found;
}

}  // namespace

bool is_mpi_choice(std::string_view text) { return text == "tcp" || text == "auto" || text == "off"; }

bool has_kernel_bypass(const std::string& sys_class) {
  constexpr const char* kClasses[] = {"infiniband", "cxi", "hfi1_user"};
  return std::any_of(std::begin(kClasses), std::end(kClasses),
                     [&](const char* name) { return holds_something(sys_class + "/" + name); });
}

Variables mpi_variables(std::string_view choice, bool bypass, const std::function<bool(const std::string&)>& is_set) {
  if (choice == "off" || (choice != "tcp" && !bypass)) return {};
  Variables all;
  for (const Library& library : libraries()) {
    if (std::any_of(library.chosen_by.begin(), library.chosen_by.end(), is_set)) continue;
    all.insert(all.end(), library.variables.begin(), library.variables.end());
  }
  return all;
}

}  // namespace icp::spank

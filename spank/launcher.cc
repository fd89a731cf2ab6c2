// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/launcher.h"

#include <unistd.h>

#include <string>

#include "coordinator/launch/stand_in.h"
#include "spank/start_program.h"

namespace icp::spank {

void start_launcher(spank_t handle, protocol::Packet& answer) {
  const std::string launcher = answer.get("launcher"), path = answer.get("launch_path");
  if (launcher.empty() || answer.fds.size() != 1) return;
  char** environment = nullptr;  // of the script
  if (spank_get_item(handle, S_JOB_ENV, &environment) == ESPANK_SUCCESS && environment != nullptr) {
    const char* const argv[] = {launcher.c_str(), "launch", "3", "4", nullptr};
    if (start_program(argv, environment, answer.fds[0], STDERR_FILENO) == 0) {
      spank_setenv(handle, launch::kSocketVariable, answer.get("launch_socket").c_str(), 1);
      spank_setenv(handle, launch::kPathVariable, path.c_str(), 1);
      spank_setenv(handle, "PATH", (path + ":" + job_env(handle, "PATH")).c_str(), 1);
    }
  }
  answer.close_fds();
}

}  // namespace icp::spank

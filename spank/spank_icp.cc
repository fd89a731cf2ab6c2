// SPDX-License-Identifier: GPL-2.0-or-later
// Which of our code runs where. Slurm calls these functions in several processes; nothing but this file is visible
// to it (spank_icp.map), and no exception leaves it.
//
//   process                     rights   functions below                             what we do
//   --------------------------  -------  ------------------------------------------  -------------------------------
//   srun, sbatch, salloc        user     init, init_post_opt                         options.cc
//   slurmd                      root     init                                        job_end.cc: clean_stale
//   slurmstepd                  root     init                                        options.cc: register
//                                        init_post_opt                               step.cc: begin_step
//                                        task_post_fork, task_exit, exit             step.cc: name_task, end_*
//   the task, before its exec   user     task_init                                   step.cc: start_task
//   child of slurmd             root     job_prolog, job_epilog                      job_end.cc: begin_job, end_job
//
// Return values: a failing init, user_init or task_post_fork of a batch step drains the node, and so does a failing
// epilog; a failing task_init fails the job alone, but only where the plugin is `required`. So everything returns 0,
// and where something must not run (task_init, init_post_opt in the user's own command) the process is ended.
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "spank/options.h"
#include "spank/settings.h"
#include "spank/slurm_api.h"
#include "spank/step.h"

#define ICP_EXPORT extern "C" __attribute__((visibility("default")))

// Declared first: a const object has internal linkage in C++.
#pragma GCC visibility push(default)
extern "C" {
extern const char plugin_name[], plugin_type[];
extern const unsigned int plugin_version, spank_plugin_version;
extern const char spank_icp_release[];
const char plugin_name[] = "icp";
const char plugin_type[] = "spank";
const unsigned int plugin_version = SLURM_VERSION_NUMBER;
const unsigned int spank_plugin_version = 1;
const char spank_icp_release[] = ICP_VERSION;  // icp doctor reads it from the file
#ifdef ICP_SPANK_INIT_FAILURE_MODE             // spank/CMakeLists.txt looks for it
// A failing init fails the job, never the node. Older Slurms do not look.
int slurm_spank_init_failure_mode = ESPANK_JOB_FAILURE;
#endif
}
#pragma GCC visibility pop

namespace {

icp::spank::Settings settings;

template <typename Function>
int guarded(const char* where, Function function) noexcept {
  try {
    return function();
  } catch (const std::exception& error) {
    icp::spank::complain(std::string(where) + ": " + error.what());
  } catch (...) {
    slurm_error("spank_icp: %s: unknown error", where);
  }
  return ESPANK_SUCCESS;
}

void read_settings(int argc, char** argv) {
  std::vector<std::string> complaints;
  settings = icp::spank::Settings::read(argc, argv, complaints);
  for (const std::string& text : complaints) slurm_error("spank_icp: %s", text.c_str());
}

int initialise(spank_t handle, int argc, char** argv) {
  read_settings(argc, argv);
  switch (spank_context()) {
    case S_CTX_LOCAL:
    case S_CTX_ALLOCATOR:
    case S_CTX_REMOTE:
      icp::spank::register_options(handle);
      break;
    case S_CTX_SLURMD:
      icp::spank::clean_stale(settings);
      break;
    default:
      break;
  }
  return ESPANK_SUCCESS;
}

int options_done(spank_t handle) {
  if (spank_context() == S_CTX_REMOTE) {
    icp::spank::begin_step(handle, settings);
  } else if (!icp::spank::settle_options()) {
    // With `optional` in plugstack.conf srun would only note a failure and go on without the checkpoints that the
    // user's environment asked for. This is the user's own command, before anything was submitted.
    std::exit(1);
  }
  return ESPANK_SUCCESS;
}

bool on_node() { return spank_context() == S_CTX_REMOTE; }

}  // namespace

ICP_EXPORT int slurm_spank_init(spank_t handle, int argc, char** argv) {
  return guarded("init", [&] { return initialise(handle, argc, argv); });
}

ICP_EXPORT int slurm_spank_init_post_opt(spank_t handle, int, char**) {
  return guarded("init_post_opt", [&] { return options_done(handle); });
}

ICP_EXPORT int slurm_spank_task_post_fork(spank_t handle, int, char**) {
  return guarded("task_post_fork", [&] {
    if (on_node()) icp::spank::name_task(handle);
    return ESPANK_SUCCESS;
  });
}

ICP_EXPORT int slurm_spank_task_init(spank_t handle, int, char**) {
  const int result = guarded("task_init", [&] { return on_node() ? icp::spank::start_task(handle) : 0; });
  // With `optional` in plugstack.conf Slurm would run the user's program all the same: a step that was to be restarted
  // must not start over. This is the forked task.
  if (result != 0) ::_exit(1);
  return ESPANK_SUCCESS;
}

ICP_EXPORT int slurm_spank_task_exit(spank_t handle, int, char**) {
  return guarded("task_exit", [&] {
    if (on_node()) icp::spank::end_task(handle);
    return ESPANK_SUCCESS;
  });
}

ICP_EXPORT int slurm_spank_exit(spank_t, int, char**) {
  return guarded("exit", [&] {
    if (on_node()) icp::spank::end_step();
    return ESPANK_SUCCESS;
  });
}

ICP_EXPORT int slurm_spank_job_prolog(spank_t handle, int argc, char** argv) {
  return guarded("job_prolog", [&] {
    read_settings(argc, argv);  // Slurm does not call init in this process
    icp::spank::begin_job(handle, settings);
    return ESPANK_SUCCESS;
  });
}

ICP_EXPORT int slurm_spank_job_epilog(spank_t handle, int argc, char** argv) {
  return guarded("job_epilog", [&] {
    read_settings(argc, argv);  // Slurm does not call init in this process
    icp::spank::end_job(handle, settings);
    return ESPANK_SUCCESS;
  });
}

// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/options.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "coordinator/checkpoint_files.h"
#include "coordinator/checkpoint_moments.h"
#include "coordinator/duration.h"
#include "coordinator/map_path.h"
#include "spank/het_group.h"
#include "spank/mpi_transports.h"

namespace icp::spank {
namespace {

// Slurm gives callbacks no user pointer, and calls them twice in slurmstepd: plain idempotent stores.
Request given;

bool check_interval(const char* source, std::string_view text) {
  std::string why;
  if (parse_duration(text, why)) return true;
  complain(std::string(source) + ": " + why);
  return false;
}

bool check_directory(const char* source, std::string_view text) {
  const char* why = nullptr;
  if (text.empty()) why = "a directory is needed";
  if (text.size() > 3000) why = "the path is too long";
  if (text.find_first_of("\n\r") != std::string_view::npos) why = "a path with a line break is not taken";
  if (why == nullptr) return true;
  slurm_error("spank_icp: %s: %s", source, why);
  return false;
}

bool check_moments(const char* source, std::string_view text) {
  if (are_moments(text)) return true;
  complain(std::string(source) + ": \"" + std::string(text) + "\" is not " + kMomentsGrammar);
  return false;
}

bool check_mpi(const char* source, std::string_view text) {
  if (is_mpi_choice(text)) return true;
  complain(std::string(source) + ": \"" + std::string(text) + "\" is not " + kMpiGrammar);
  return false;
}

bool check_map(const char* source, std::string_view text) {
  constexpr size_t kLongest = 3000;
  if (!text.empty() && text.size() <= kLongest && parse_map_path(text)) return true;
  complain(std::string(source) + ": \"" + std::string(text.substr(0, kLongest)) + "\" is not " + kMapPathGrammar);
  return false;
}

bool check_files(const char* source, std::string_view text) {
  constexpr size_t kLongest = 3000;
  if (text.size() <= kLongest && parse_checkpoint_files(text)) return true;
  complain(std::string(source) + ": \"" + std::string(text.substr(0, kLongest)) + "\" is not " +
           kCheckpointFilesGrammar);
  return false;
}

bool check_number(const char* source, std::string_view text) {
  constexpr size_t kMostDigits = 6;
  if (!text.empty() && text.size() <= kMostDigits && text.find_first_not_of("0123456789") == text.npos) return true;
  complain(std::string(source) + ": \"" + std::string(text) + "\" is not a number from 0 to 999999");
  return false;
}

// Slurm keeps the pointers: static storage, and not const.
char interval_name[] = "checkpoint-interval", alias_name[] = "checkpoint", directory_name[] = "checkpoint-dir",
     restart_name[] = "restart-dir", map_name[] = "map-path", pair_word[] = "OLD=NEW", moments_name[] = "checkpoint-on",
     requeue_name[] = "requeue-max", mpi_name[] = "checkpoint-mpi", mpi_word[] = "transport",
     mpi_usage[] = "keep MPI on TCP, which can be checkpointed: tcp, auto (where the node has RDMA devices), off",
     files_name[] = "checkpoint-files", files_word[] = "what",
     files_usage[] = "content of files to keep: none, open (those open for writing), dir:PATH (all below it)",
     when_word[] = "when", number_word[] = "number", time_word[] = "time", directory_word[] = "directory",
     interval_usage[] = "take a checkpoint of each step at this interval: 30s, 10m, 2h, or minutes",
     alias_usage[] = "the same as --checkpoint-interval",
     moments_usage[] = "take a checkpoint at these moments: timelimit, drain, preempt, cancel, signal",
     requeue_usage[] = "how often a batch job is requeued when its time limit comes",
     map_usage[] = "with --restart-dir: what was at path OLD is at NEW; may be repeated",
     directory_usage[] = "where checkpoints go: <directory>/<job>.<step> (default: the working directory)",
     restart_usage[] =
         "restart from the checkpoint in this directory, DIR:N: from version N; none: start afresh after a requeue";

template <std::string Request::*Member, bool (*Check)(const char*, std::string_view)>
int take_option(const char* source, const char* argument, int remote) {
  const std::string_view text = argument == nullptr ? "" : argument;
  if (remote == 0 && !Check(source, text)) return -1;  // on the node nothing may fail: the submission was checked
  given.*Member = text;
  return 0;
}

// May be repeated: Slurm calls once for each, in slurmstepd twice.
int take_map(int, const char* argument, int remote) {
  const std::string text = argument == nullptr ? "" : argument;
  if (remote == 0 && !check_map("--map-path", text)) return -1;
  std::string& all = given.map_path;
  if ((":" + all + ":").find(":" + text + ":") != std::string::npos) return 0;
  const std::string together = all.empty() ? text : all + ":" + text;
  if (remote == 0 && !check_map("--map-path", together)) return -1;
  all = together;
  return 0;
}

spank_option table[] = {
    {interval_name, time_word, interval_usage, 1, 0,
     [](int, const char* argument, int remote) {
       return take_option<&Request::interval, check_interval>("--checkpoint-interval", argument, remote);
     }},
    {alias_name, time_word, alias_usage, 1, 0,
     [](int, const char* argument, int remote) {
       return take_option<&Request::interval, check_interval>("--checkpoint", argument, remote);
     }},
    {moments_name, when_word, moments_usage, 1, 0,
     [](int, const char* argument, int remote) {
       return take_option<&Request::checkpoint_on, check_moments>("--checkpoint-on", argument, remote);
     }},
    {requeue_name, number_word, requeue_usage, 1, 0,
     [](int, const char* argument, int remote) {
       return take_option<&Request::requeue_max, check_number>("--requeue-max", argument, remote);
     }},
    {mpi_name, mpi_word, mpi_usage, 1, 0,
     [](int, const char* argument, int remote) {
       return take_option<&Request::mpi, check_mpi>("--checkpoint-mpi", argument, remote);
     }},
    {files_name, files_word, files_usage, 1, 0,
     [](int, const char* argument, int remote) {
       return take_option<&Request::checkpoint_files, check_files>("--checkpoint-files", argument, remote);
     }},
    {directory_name, directory_word, directory_usage, 1, 0,
     [](int, const char* argument, int remote) {
       return take_option<&Request::checkpoint_dir, check_directory>("--checkpoint-dir", argument, remote);
     }},
    {restart_name, directory_word, restart_usage, 1, 0,
     [](int, const char* argument, int remote) {
       return take_option<&Request::restart_dir, check_directory>("--restart-dir", argument, remote);
     }},
    {map_name, pair_word, map_usage, 1, 0, take_map},
};

// The environment twins of one option, in falling order of precedence. The first of each list is what the step reads.
struct Twins {
  const char* option;
  std::string Request::*member;
  bool (*check)(const char*, std::string_view);
  std::vector<const char*> srun, sbatch, salloc;
  std::vector<const char*> inherited;  // how Slurm hands the option of sbatch or salloc to the job's sruns
};

#define ICP_INHERITED "SLURM_SPANK__SLURM_SPANK_OPTION_icp_"

const std::vector<Twins>& all_twins() {
  static const std::vector<Twins> twins = {
      {interval_name,
       &Request::interval,
       check_interval,
       {"SLURM_CHECKPOINT", "SLURM_CHECKPOINT_INTERVAL"},
       {"SBATCH_CHECKPOINT", "SBATCH_CHECKPOINT_INTERVAL"},
       {"SALLOC_CHECKPOINT", "SALLOC_CHECKPOINT_INTERVAL"},
       {ICP_INHERITED "checkpoint_interval", ICP_INHERITED "checkpoint"}},
      {moments_name,
       &Request::checkpoint_on,
       check_moments,
       {"SLURM_CHECKPOINT_ON"},
       {"SBATCH_CHECKPOINT_ON"},
       {"SALLOC_CHECKPOINT_ON"},
       {ICP_INHERITED "checkpoint_on"}},
      {requeue_name,
       &Request::requeue_max,
       check_number,
       {"SLURM_CHECKPOINT_REQUEUE_MAX"},
       {"SBATCH_CHECKPOINT_REQUEUE_MAX"},
       {"SALLOC_CHECKPOINT_REQUEUE_MAX"},
       {ICP_INHERITED "requeue_max"}},
      {mpi_name,
       &Request::mpi,
       check_mpi,
       {"SLURM_CHECKPOINT_MPI"},
       {"SBATCH_CHECKPOINT_MPI"},
       {"SALLOC_CHECKPOINT_MPI"},
       {ICP_INHERITED "checkpoint_mpi"}},
      {files_name,
       &Request::checkpoint_files,
       check_files,
       {"SLURM_CHECKPOINT_FILES"},
       {"SBATCH_CHECKPOINT_FILES"},
       {"SALLOC_CHECKPOINT_FILES"},
       {ICP_INHERITED "checkpoint_files"}},
      {directory_name,
       &Request::checkpoint_dir,
       check_directory,
       {"SLURM_CHECKPOINT_DIR", "SLURM_CHECKPOINT_IMAGE_DIR"},
       {"SBATCH_CHECKPOINT_DIR"},
       {"SALLOC_CHECKPOINT_DIR"},
       {ICP_INHERITED "checkpoint_dir"}},
      {restart_name,
       &Request::restart_dir,
       check_directory,
       {"SLURM_RESTART_DIR"},
       {"SBATCH_RESTART_DIR"},
       {"SALLOC_RESTART_DIR"},
       {ICP_INHERITED "restart_dir"}},
      {map_name,
       &Request::map_path,
       check_map,
       {"SLURM_RESTART_MAP_PATH"},
       {"SBATCH_RESTART_MAP_PATH"},
       {"SALLOC_RESTART_MAP_PATH"},
       {ICP_INHERITED "map_path"}},
  };
  return twins;
}

// Texts of the options that this srun inherited. Kept from init on: Slurm takes them out of srun's environment when it
// has read them.
std::vector<std::string> inherited_texts;

// True when the option is not this command's own but came from sbatch or salloc. What those settled (the absolute
// path), and what the script changed since, is in the environment.
bool is_inherited(const Twins& twins, const std::string& value) {
  const char* const settled = std::getenv(twins.srun.front());
  if (settled == nullptr || *settled == '\0') return false;
  for (const std::string& text : inherited_texts) {
    if (value == text) return true;
  }
  return false;
}

std::string absolute(const std::string& path) {
  if (path.empty() || path[0] == '/' || path == "none") return path;
  char* const here = ::getcwd(nullptr, 0);
  if (here == nullptr) return path;
  std::string result = std::string(here) + "/" + path;
  std::free(here);
  return result;
}

// What is not there when the command is typed is a slip of the pen, which should not wait in a queue to be found. One
// that another job makes until then is named to the srun that needs it.
bool is_there(const std::string& directory) {
  if (directory == "none") return true;
  struct stat facts {};
  if (::stat(directory.c_str(), &facts) == 0) return true;
  const int error = errno;
  const size_t colon = directory.rfind(':');  // DIR:N names a version
  const bool version = colon != std::string::npos && colon + 1 < directory.size() &&
                       directory.find_first_not_of("0123456789", colon + 1) == std::string::npos;
  if (version && ::stat(directory.substr(0, colon).c_str(), &facts) == 0) return true;
  complain("cannot restart: " + directory + ": " + std::strerror(error));
  return false;
}

// What the components of a heterogeneous step were given each goes into variables of their own.
bool settle_components(const Twins& twins, const std::vector<std::string>& words, const std::string& last) {
  const std::vector<std::string> values = component_values(words, twins.option, last);
  for (size_t i = 0; i < values.size(); i++) {
    std::string value = values[i];
    if (!value.empty() && !twins.check(twins.option, value)) return false;
    if (twins.check == check_directory) value = absolute(value);
    if (!value.empty() && twins.member == &Request::restart_dir && !is_there(value)) return false;
    if (value.empty()) value = kNotGiven;
    ::setenv(group_variable(twins.srun.front(), static_cast<int>(i)).c_str(), value.c_str(), 1);
  }
  return true;
}

}  // namespace

void register_options(spank_t handle) {
  for (const Twins& twins : all_twins()) {
    for (const char* name : twins.inherited) {
      if (const char* const text = std::getenv(name); text != nullptr) inherited_texts.emplace_back(text);
    }
  }
  for (spank_option& option : table) {
    if (const auto error = spank_option_register(handle, &option); error != ESPANK_SUCCESS) {
      slurm_error("spank_icp: cannot register --%s: %s", option.name, spank_strerror(error));
    }
  }
}

bool settle_options() {
  const std::vector<std::string> words = own_command_line();
  const std::string_view command = program_invocation_short_name;
  for (const Twins& twins : all_twins()) {
    std::string& value = given.*twins.member;
    const bool whole = twins.member == &Request::map_path;  // the same for all components
    if (command == "srun" && !value.empty() && !whole && !settle_components(twins, words, value)) return false;
    const auto& names = command == "sbatch" ? twins.sbatch : command == "salloc" ? twins.salloc : twins.srun;
    if (is_inherited(twins, value)) value.clear();
    // A job's own srun may get the directory of a submission that Slurm has requeued since.
    const bool typed = !value.empty() || std::getenv("SLURM_JOB_ID") == nullptr;
    for (const char* name : names) {
      const char* const text = std::getenv(name);
      if (!value.empty() || text == nullptr || *text == '\0') continue;
      if (!twins.check(name, text)) return false;
      value = text;
    }
    if (value.empty()) continue;
    if (twins.check == check_directory) value = absolute(value);
    if (twins.member == &Request::restart_dir && typed && !is_there(value)) return false;
    ::setenv(twins.srun.front(), value.c_str(), 1);
  }
  return true;
}

Request requested(spank_t handle, uint32_t job) {
  Request request = given;
  const std::optional<int> group = het_group(handle, job);
  for (const Twins& twins : all_twins()) {
    std::string& value = request.*twins.member;
    for (auto name = twins.srun.rbegin(); name != twins.srun.rend(); ++name) {
      // What the submission settled is in the environment; the option's own text is what is left when the user kept
      // the environment from the job (--export=NIL).
      if (const std::string text = job_env(handle, *name); !text.empty()) value = text;
    }
    if (const std::string text = group ? job_env(handle, group_variable(twins.srun.front(), *group).c_str()) : "";
        !text.empty()) {
      value = text == kNotGiven ? "" : text;
    }
    // A variable changed inside the job: its submission was checked.
    if (value.empty() || twins.check(twins.srun.front(), value)) continue;
    if (twins.member == &Request::restart_dir)
      request.refused = std::string(twins.srun.front()) + " names no directory";
    value.clear();
  }
  return request;
}

}  // namespace icp::spank

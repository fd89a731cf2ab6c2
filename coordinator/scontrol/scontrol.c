// SPDX-License-Identifier: GPL-2.0-or-later
// scontrol: a front end that gives `scontrol checkpoint` back. That keyword goes to `icp scontrol`; everything else,
// and the interactive mode, to Slurm's own scontrol, with the same arguments and environment. It stands in every
// scontrol of a site, so it is plain C and execs at once.
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "coordinator/scontrol/find_program.h"

static const char kKeyword[] = "checkpoint";

// The options of Slurm's scontrol, 17.11 to 24.11. One that is not known here goes to the real one, with all the rest.
enum { kOther = 1000, kOtherWithValue };
static const char kShort[] = ":adhM:FoQu:vV";
static const struct option kLong[] = {
    {"all", no_argument, NULL, 'a'},
    {"cluster", required_argument, NULL, 'M'},
    {"clusters", required_argument, NULL, 'M'},
    {"details", no_argument, NULL, 'd'},
    {"federation", no_argument, NULL, kOther},
    {"future", no_argument, NULL, 'F'},
    {"help", no_argument, NULL, 'h'},
    {"hide", no_argument, NULL, kOther},
    {"local", no_argument, NULL, kOther},
    {"oneliner", no_argument, NULL, 'o'},
    {"quiet", no_argument, NULL, 'Q'},
    {"sibling", no_argument, NULL, kOther},
    {"uid", required_argument, NULL, 'u'},
    {"usage", no_argument, NULL, 'h'},
    {"verbose", no_argument, NULL, 'v'},
    {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

struct line {
  int is_ours;
  int quiet;
  const char* clusters;  // NULL: none named
  char** words;          // from the keyword on, ended by NULL
};

// scontrol takes a case-insensitive prefix of at least two letters.
static int is_keyword(const char* word) {
  const size_t length = strlen(word);
  return length >= 2 && length < sizeof kKeyword && strncasecmp(word, kKeyword, length) == 0;
}

// Reads the line as Slurm's scontrol does, which allows options also after the words. `argv` is reordered.
static struct line read_line(int argc, char** argv) {
  struct line line = {0, 0, getenv("SLURM_CLUSTERS"), NULL};
  for (int option; (option = getopt_long(argc, argv, kShort, kLong, NULL)) != -1;) {
    switch (option) {
      case 'Q':
        line.quiet = 1;
        break;
      case 'M':
        line.clusters = optarg;
        break;
      case 'h':
      case 'V':
      case '?':
      case ':':
        return line;
      default:
        break;
    }
  }
  line.words = argv + optind;
  line.is_ours = optind < argc && is_keyword(argv[optind]);
  return line;
}

static int run_icp(const struct line* line, size_t words) {
  char path[kPathBytes];
  char** command;
  size_t used = 0;
  if (line->clusters != NULL && *line->clusters != '\0') {
    if (!line->quiet)
      fprintf(
          stderr,
          "scontrol: error: checkpoint works on the cluster of this machine alone: leave out -M and SLURM_CLUSTERS\n");
    return 1;
  }
  if (!find_icp(path)) {
    fprintf(stderr, "scontrol: error: cannot find icp beside %s or in PATH\n", own_path());
    return 1;
  }
  command = calloc(words + 4, sizeof *command);
  if (command == NULL) {
    perror("scontrol: error");
    return 1;
  }
  command[used++] = "icp";
  command[used++] = "scontrol";
  if (line->quiet) command[used++] = "-Q";
  memcpy(command + used, line->words, words * sizeof *command);
  execv(path, command);
  fprintf(stderr, "scontrol: error: cannot execute %s: %m\n", path);
  return 1;
}

int main(int argc, char** argv) {
  // getopt() reorders what it is given; the real scontrol gets the line as it was typed.
  char** copy = calloc((size_t)argc + 1, sizeof *copy);
  char path[kPathBytes];
  struct line line;
  if (copy == NULL) {
    perror("scontrol: error");
    return 1;
  }
  memcpy(copy, argv, (size_t)argc * sizeof *copy);
  opterr = 0;
  line = read_line(argc, copy);
  if (line.is_ours) return run_icp(&line, (size_t)(copy + argc - line.words));

  if (!find_real_scontrol(path)) {
    const char* given = getenv("ICP_REAL_SCONTROL");
    fputs("scontrol: error: cannot find Slurm's own scontrol: ", stderr);
    if (given != NULL && *given != '\0') {
      fprintf(stderr, "ICP_REAL_SCONTROL=%s is none\n", given);
    } else {
      fprintf(stderr, "%s.distrib is none, and no scontrol in PATH; set ICP_REAL_SCONTROL to its path\n", own_path());
    }
    return 1;
  }
  execv(path, argv);
  fprintf(stderr, "scontrol: error: cannot execute %s: %m\n", path);
  return 1;
}

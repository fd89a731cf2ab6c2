// SPDX-License-Identifier: GPL-2.0-or-later
// mpi_ways MODE: an MPI program that does something rarer than computing, waits until there is a file "go" in its
// directory, does it again (or for the first time: the ways to end), and ends. Rank 0 prints what came of it: "before
// MODE ok" or "... error", "READY", "after MODE ok", "DONE".
//
// spawn: MPI_Comm_spawn of one process, which answers and leaves. children: the same, but the one of before stays, and
// is spoken with again afterwards. connect: rank 1 connects to rank 0's port. publish: a name is published and looked
// up. nothing; abort: rank 1 calls MPI_Abort(5). exit: rank 1 leaves by exit(7). die: rank 1 dies of SIGSEGV. late:
// rank 1 ends with 9 after MPI_Finalize.
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int rank, size;
static const char* mode;

static void say(const char* when, int error) {
  int class = error;
  if (error != MPI_SUCCESS) MPI_Error_class(error, &class);
  if (rank != 0) return;
  if (class == MPI_SUCCESS)
    printf("%s %s ok\n", when, mode);
  else
    printf("%s %s error\n", when, mode);
  fflush(stdout);
}

static int ask(MPI_Comm child, int value) {
  int answer = 0;
  if (rank == 0) MPI_Send(&value, 1, MPI_INT, 0, 0, child);
  if (rank == 0) MPI_Recv(&answer, 1, MPI_INT, 0, 0, child, MPI_STATUS_IGNORE);
  MPI_Bcast(&answer, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return answer == value + 1 ? MPI_SUCCESS : MPI_ERR_OTHER;
}

static int child(MPI_Comm parent) {
  for (int value = 1; value != 0;) {
    MPI_Recv(&value, 1, MPI_INT, 0, 0, parent, MPI_STATUS_IGNORE);
    const int answer = value + 1;
    MPI_Send(&answer, 1, MPI_INT, 0, 0, parent);
  }
  MPI_Comm_disconnect(&parent);
  MPI_Finalize();
  return 0;
}

static int start_child(char* program, MPI_Comm* made) {
  char* arguments[] = {(char*)"child", NULL};
  return MPI_Comm_spawn(program, arguments, 1, MPI_INFO_NULL, 0, MPI_COMM_WORLD, made, MPI_ERRCODES_IGNORE);
}

static int end_child(MPI_Comm* made) {
  const int error = ask(*made, 0);
  MPI_Comm_disconnect(made);
  return error;
}

static int spawn(char* program) {
  MPI_Comm made;
  int error = start_child(program, &made);
  if (error == MPI_SUCCESS) error = ask(made, 41);
  if (error == MPI_SUCCESS) error = end_child(&made);
  return error;
}

// Of the first two ranks.
static int join_ranks(void) {
  char port[MPI_MAX_PORT_NAME] = "";
  MPI_Comm joined = MPI_COMM_NULL;
  int error = MPI_SUCCESS, got = 0;
  if (rank == 0) error = MPI_Open_port(MPI_INFO_NULL, port);
  MPI_Bcast(&error, 1, MPI_INT, 0, MPI_COMM_WORLD);
  if (error != MPI_SUCCESS) return error;
  MPI_Bcast(port, sizeof port, MPI_CHAR, 0, MPI_COMM_WORLD);
  if (rank == 0) error = MPI_Comm_accept(port, MPI_INFO_NULL, 0, MPI_COMM_SELF, &joined);
  if (rank == 1) error = MPI_Comm_connect(port, MPI_INFO_NULL, 0, MPI_COMM_SELF, &joined);
  if (joined != MPI_COMM_NULL) {
    const int mine = rank;
    MPI_Sendrecv(&mine, 1, MPI_INT, 0, 0, &got, 1, MPI_INT, 0, 0, joined, MPI_STATUS_IGNORE);
    if (got != 1 - rank) error = MPI_ERR_OTHER;
    MPI_Comm_disconnect(&joined);
  }
  if (rank == 0) MPI_Close_port(port);
  MPI_Bcast(&error, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return error;
}

// No port is behind it: not every MPI that knows names can open one.
static int publish(void) {
  char port[MPI_MAX_PORT_NAME] = "somewhere", found[MPI_MAX_PORT_NAME] = "";
  int error = MPI_SUCCESS;
  if (rank == 0) error = MPI_Publish_name("ways", MPI_INFO_NULL, port);
  MPI_Bcast(&error, 1, MPI_INT, 0, MPI_COMM_WORLD);
  if (error != MPI_SUCCESS) return error;
  if (rank == 1) error = MPI_Lookup_name("ways", MPI_INFO_NULL, found);
  if (rank == 1 && error == MPI_SUCCESS && strcmp(found, port) != 0) error = MPI_ERR_OTHER;
  MPI_Bcast(&error, 1, MPI_INT, 1, MPI_COMM_WORLD);
  if (rank == 0) MPI_Unpublish_name("ways", MPI_INFO_NULL, port);
  return error;
}

static int once(char* program) {
  if (strcmp(mode, "spawn") == 0 || strcmp(mode, "children") == 0) return spawn(program);
  if (strcmp(mode, "connect") == 0) return join_ranks();
  if (strcmp(mode, "publish") == 0) return publish();
  return MPI_SUCCESS;
}

// The other ranks leave by themselves if nobody ends them. What they have said is on its way out before that.
static void end_badly(void) {
  MPI_Barrier(MPI_COMM_WORLD);
  usleep(500000);
  if (rank == 1 && strcmp(mode, "abort") == 0) MPI_Abort(MPI_COMM_WORLD, 5);
  if (rank == 1 && strcmp(mode, "exit") == 0) exit(7);
  if (rank == 1 && strcmp(mode, "die") == 0) raise(SIGSEGV);
  sleep(5);
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm parent, stays = MPI_COMM_NULL;
  MPI_Comm_get_parent(&parent);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (parent != MPI_COMM_NULL) return child(parent);
  if (argc != 2) return 2;
  mode = argv[1];
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
  int error = strcmp(mode, "children") == 0 ? start_child(argv[0], &stays) : once(argv[0]);
  if (error == MPI_SUCCESS && stays != MPI_COMM_NULL) error = ask(stays, 6);
  say("before", error);
  if (rank == 0) puts("READY");
  fflush(stdout);
  while (access("go", F_OK) != 0) usleep(50000);
  if (MPI_Barrier(MPI_COMM_WORLD) != MPI_SUCCESS) return 3;
  if (stays != MPI_COMM_NULL) {
    say("still", ask(stays, 7));
    error = end_child(&stays);
    if (error == MPI_SUCCESS) error = spawn(argv[0]);
    say("after", error);
  } else {
    say("after", once(argv[0]));
  }
  const int badly = strcmp(mode, "abort") == 0 || strcmp(mode, "exit") == 0 || strcmp(mode, "die") == 0;
  if (badly) end_badly();
  if (!badly) MPI_Finalize();
  if (rank == 0) puts("DONE");
  return rank == 1 && strcmp(mode, "late") == 0 ? 9 : 0;
}

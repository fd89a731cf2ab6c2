/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * icp-init: pid 1 of a restored capsule. The agent starts it in fresh namespaces, builds all processes from it by
 * remote system calls, and reads from it how the tasks ended.
 *
 * Usage: icp-init FD, a socket, in namespaces that are set up (engine/broker/operations.cc, which says "E<errno> <what>\n"
 * there when that fails). It writes to FD: "R"; waits for one byte, sent when the capsule is whole; then writes "X <pid> <status>\n" for every child that ends. It
 * ends when no child is left. Linked statically and without anything it does not need: restored processes start as
 * copies of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int channel;

static void say(const char* text) {
  size_t length = strlen(text);
  while (length > 0) {
    const ssize_t written = send(channel, text, length, MSG_NOSIGNAL);
    if (written <= 0 && errno != EINTR) return; /* the agent is gone; tasks live on if it detached */
    if (written > 0) text += written, length -= (size_t)written;
  }
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  channel = atoi(argv[1]);
  /* What the agent ignores would be inherited by every process made from here. */
  const unsigned long action[4] = {0, 0, 0, 0}; /* the kernel's struct sigaction: SIG_DFL, and no flags, as after exec */
  for (int number = 1; number < NSIG; ++number) syscall(SYS_rt_sigaction, number, action, NULL, 8);
  setsid();
  prctl(PR_SET_NAME, "icp-init", 0, 0, 0); /* by which a later checkpoint knows a restored capsule */
  /* Where Yama lets a process be traced by its ancestors alone: the agent may be none. It has the same user. */
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  say("R");
  char go;
  while (read(channel, &go, 1) < 0 && errno == EINTR) {
  }
  for (;;) {
    int status;
    const pid_t pid = waitpid(-1, &status, __WALL);
    if (pid < 0 && errno == EINTR) continue;
    if (pid < 0) return 0; /* no child left */
    char line[64];
    snprintf(line, sizeof line, "X %d %d\n", (int)pid, status);
    say(line);
  }
}

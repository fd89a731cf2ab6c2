/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fork_sysv: a parent and two children pass a counter round, by every System V means.
 *
 * The counter lies in a shared memory segment, found by key in each process. A
 * semaphore guards it (with SEM_UNDO) and a message queue hands the turn on: each
 * message names the value its receiver must find. What is wrong is an error at once.
 */
#include <signal.h>
#include <stdbool.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

enum { PROCESSES = 3, MUTEX = PROCESSES, SEMAPHORES };

static const char usage[] =
    "usage: fork_sysv [options]\n"
    "  --rounds N   how often the counter goes round (1000)\n"
    "  --us T       pause at each hand, microseconds (0)\n"
    "  --key K      of segment, semaphores and queue (made from job and step)\n"
    "  --leak       leave the three behind\n";

struct message {
  long type; /* receiver + 1 */
  long round;
  uint64_t counter;
};

struct shared {
  uint64_t counter;
  uint64_t turns[PROCESSES];
  uint64_t trail[4096]; /* the last values, so that more than one page matters */
};

struct options {
  long rounds;
  double us;
  int key;
  bool leak;
};

struct ipc {
  int segment, semaphores, queue;
  struct shared* shared;
};

static struct options parse(int argc, char** argv) {
  static const struct option table[] = {
      {"rounds", 1, 0, 'n'}, {"us", 1, 0, 't'}, {"key", 1, 0, 'k'}, {"leak", 0, 0, 'l'}, {"help", 0, 0, 'h'}, {0},
  };
  struct options o = {.rounds = 1000, .key = default_key()};
  int c;

  while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
    switch (c) {
      case 'n':
        o.rounds = (long)number("rounds", optarg, 1, 1e12);
        break;
      case 't':
        o.us = number("us", optarg, 0, 1e9);
        break;
      case 'k':
        o.key = (int)strtol(optarg, NULL, 0);
        break;
      case 'l':
        o.leak = true;
        break;
      case 'h':
        fputs(usage, stdout);
        exit(0);
      default:
        fputs(usage, stderr);
        exit(2);
    }
  }
  return o;
}

/* Change semaphore `number` by `change`, waiting as long as it takes. */
static void change_semaphore(const struct ipc* ipc, int number, int change, int flags) {
  struct sembuf operation = {(unsigned short)number, (short)change, (short)flags};

  while (semop(ipc->semaphores, &operation, 1) != 0)
    if (errno != EINTR) die("semop(%d, %+d)", number, change);
}

/* The three objects of `key`; `flags` make them or find them. */
static struct ipc open_ipc(int key, int flags) {
  struct ipc ipc = {
      .segment = shmget(key, sizeof(struct shared), flags),
      .semaphores = semget(key, SEMAPHORES, flags),
      .queue = msgget(key, flags),
  };

  if (ipc.segment < 0 || ipc.semaphores < 0 || ipc.queue < 0)
    die("System V objects of key 0x%x (segment %d, semaphores %d, queue %d)", key, ipc.segment, ipc.semaphores,
        ipc.queue);
  ipc.shared = shmat(ipc.segment, NULL, 0);
  if (ipc.shared == (void*)-1) die("shmat(id %d)", ipc.segment);
  return ipc;
}

static void send(const struct ipc* ipc, int to, long round) {
  struct message message = {to + 1, round, ipc->shared->counter};

  while (msgsnd(ipc->queue, &message, sizeof message - sizeof message.type, 0) != 0)
    if (errno != EINTR) die("msgsnd to %d", to);
  change_semaphore(ipc, to, +1, 0);
}

static void receive(const struct ipc* ipc, int me, long round) {
  struct message message;

  change_semaphore(ipc, me, -1, 0);
  while (msgrcv(ipc->queue, &message, sizeof message - sizeof message.type, me + 1, 0) < 0)
    if (errno != EINTR) die("msgrcv by %d", me);
  errno = 0;
  if (message.round != round || message.counter != ipc->shared->counter)
    die("process %d, round %ld: message says round %ld and %llx, memory %llx", me, round, message.round,
        (unsigned long long)message.counter, (unsigned long long)ipc->shared->counter);
}

static void take_turns(const struct ipc* ipc, const struct options* o, int me) {
  for (long round = 1; round <= o->rounds; round++) {
    receive(ipc, me, round);
    change_semaphore(ipc, MUTEX, -1, SEM_UNDO);
    ipc->shared->counter = mix(ipc->shared->counter + (uint64_t)me + 1);
    ipc->shared->turns[me]++;
    ipc->shared->trail[(round * PROCESSES + me) % 4096] = ipc->shared->counter;
    if (o->us > 0) sleep_ms(o->us / 1000);
    change_semaphore(ipc, MUTEX, +1, SEM_UNDO);
    /* The last hand of the last round keeps the counter. */
    if (me + 1 < PROCESSES || round < o->rounds)
      send(ipc, (me + 1) % PROCESSES, me + 1 < PROCESSES ? round : round + 1);
    if (me == 0 && (round % 100 == 0 || round == o->rounds)) {
      printf("round %ld of %ld\n", round, o->rounds);
      fflush(stdout);
    }
  }
}

static void start_children(const struct options* o) {
  fflush(stdout);
  for (int me = 1; me < PROCESSES; me++) {
    pid_t child = fork();

    if (child < 0) die("fork");
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      struct ipc ipc = open_ipc(o->key, 0);

      take_turns(&ipc, o, me);
      exit(0);
    }
  }
}

static void remove_ipc(const struct ipc* ipc) {
  if (shmctl(ipc->segment, IPC_RMID, NULL) != 0 || semctl(ipc->semaphores, 0, IPC_RMID) != 0 ||
      msgctl(ipc->queue, IPC_RMID, NULL) != 0)
    die("IPC_RMID");
}

int main(int argc, char** argv) {
  struct options o = parse(argc, argv);
  struct ipc ipc = open_ipc(o.key, IPC_CREAT | IPC_EXCL | 0600);
  int status;

  start_children(&o);
  change_semaphore(&ipc, MUTEX, +1, 0);
  send(&ipc, 0, 1);
  take_turns(&ipc, &o, 0);
  for (int child = 1; child < PROCESSES; child++)
    if (wait(&status) < 0 || status != 0) {
      errno = 0;
      die("a child failed with status 0x%x", status);
    }
  errno = 0;
  if (semctl(ipc.semaphores, MUTEX, GETVAL) != 1)
    die("the mutex is at %d at the end", semctl(ipc.semaphores, MUTEX, GETVAL));
  printf("RESULT fork_sysv rounds=%ld turns=%llu,%llu,%llu hash=%016llx\n", o.rounds,
         (unsigned long long)ipc.shared->turns[0], (unsigned long long)ipc.shared->turns[1],
         (unsigned long long)ipc.shared->turns[2],
         (unsigned long long)hash_words(ipc.shared->counter, ipc.shared->trail, 4096));
  if (!o.leak) remove_ipc(&ipc);
  return 0;
}

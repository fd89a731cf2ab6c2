/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mgs: modified Gram-Schmidt, A = QR, by several processes on one System V segment.
 *
 * The second program of the incremental checkpoint's measurements. Under srun each
 * task is one of the processes; else it forks them. The segment is found by its
 * key: the first process to need it makes it, all others attach.
 *
 * The result's bits do not depend on timing, nor on how many processes share the
 * work: each column operation is done whole, by one process, in one order.
 */
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>

#include "common.h"
#include "shared_barrier.h"

enum { MOST_PROCESSES = 256 };

static const char usage[] =
    "usage: mgs [options]\n"
    "  --rows N --columns M   the matrix (512 x 256); N >= M\n"
    "  --fork P               fork P processes even under srun (4 when not under srun)\n"
    "  --key K                the segment's key (made from job and step)\n"
    "  --step-ms T            pause at each column, milliseconds (0)\n"
    "  --wait HOW             at barriers: futex, yield or sleep (futex)\n"
    "  --seed K               (1)\n"
    "  --out FILE             the result's hash\n"
    "  --matrix FILE          Q and R themselves, the bits of their doubles\n"
    "  --leak                 leave the segment behind\n";

struct options {
  size_t rows, columns;
  uint32_t processes; /* 0: not given */
  int key;
  double step_ms;
  enum barrier_wait how;
  uint64_t seed;
  const char *out, *matrix;
  bool leak;
};

/* The segment: this, then Q (column by column), then R (row by row). */
struct shared {
  struct shared_barrier barrier;
  _Atomic uint32_t arrived;
  uint32_t reserved;
};

struct job {
  struct options o;
  uint32_t rank;
  int segment;
  struct shared* shared;
  double *q, *r;
};

static enum barrier_wait parse_wait(const char* text) {
  static const char* const names[] = {"futex", "yield", "sleep"};

  for (int i = 0; i < 3; i++)
    if (strcmp(text, names[i]) == 0) return (enum barrier_wait)i;
  errno = 0;
  die("--wait %s: futex, yield or sleep is wanted", text);
}

static struct options parse(int argc, char** argv) {
  static const struct option table[] = {
      {"rows", 1, 0, 'n'},    {"columns", 1, 0, 'm'}, {"fork", 1, 0, 'P'}, {"key", 1, 0, 'k'},
      {"step-ms", 1, 0, 't'}, {"wait", 1, 0, 'w'},    {"seed", 1, 0, 's'}, {"out", 1, 0, 'o'},
      {"matrix", 1, 0, 'x'},  {"leak", 0, 0, 'l'},    {"help", 0, 0, 'h'}, {0},
  };
  struct options o = {.rows = 512, .columns = 256, .seed = 1};
  int c;

  while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
    switch (c) {
      case 'n':
        o.rows = (size_t)number("rows", optarg, 1, 1e6);
        break;
      case 'm':
        o.columns = (size_t)number("columns", optarg, 1, 1e6);
        break;
      case 'P':
        o.processes = (uint32_t)number("fork", optarg, 1, MOST_PROCESSES);
        break;
      case 'k':
        o.key = (int)strtol(optarg, NULL, 0);
        break;
      case 't':
        o.step_ms = number("step-ms", optarg, 0, 1e9);
        break;
      case 'w':
        o.how = parse_wait(optarg);
        break;
      case 's':
        o.seed = (uint64_t)number("seed", optarg, 0, 1e15);
        break;
      case 'o':
        o.out = optarg;
        break;
      case 'x':
        o.matrix = optarg;
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
  errno = 0;
  if (o.rows < o.columns) die("--rows must not be less than --columns");
  if (o.key == 0) o.key = default_key();
  return o;
}

/* Make the segment, or attach to the one a faster process has made. */
static void attach(struct job* job) {
  size_t cells = job->o.columns * (job->o.rows + job->o.columns);
  size_t size = sizeof *job->shared + cells * sizeof(double);
  const char* verb = "made";

  job->segment = shmget(job->o.key, size, IPC_CREAT | IPC_EXCL | 0600);
  if (job->segment < 0 && errno == EEXIST) {
    verb = "attached to";
    job->segment = shmget(job->o.key, size, 0);
  }
  if (job->segment < 0) die("shmget(key 0x%x, %zu bytes)", job->o.key, size);
  job->shared = shmat(job->segment, NULL, 0);
  if (job->shared == (void*)-1) die("shmat(id %d)", job->segment);
  errno = 0;
  if (atomic_fetch_add(&job->shared->arrived, 1) >= job->o.processes)
    die("segment 0x%x is left from an earlier run: ipcrm -M 0x%x", job->o.key, job->o.key);
  job->q = (double*)(job->shared + 1);
  job->r = job->q + job->o.rows * job->o.columns;
  fprintf(stderr, "process %u %s segment 0x%08x, id %d\n", job->rank, verb, job->o.key, job->segment);
}

static void barrier(struct job* job) { shared_barrier_wait(&job->shared->barrier, job->o.processes, job->o.how); }

static bool mine(const struct job* job, size_t column) { return column % job->o.processes == job->rank; }

static void fill(struct job* job) {
  for (size_t j = 0; j < job->o.columns; j++) {
    if (!mine(job, j)) continue;
    for (size_t i = 0; i < job->o.rows; i++) {
      uint64_t bits = mix(job->o.seed << 40 ^ (uint64_t)j << 20 ^ i);

      job->q[j * job->o.rows + i] = (double)(bits >> 11) * 0x1p-53 - 0.5;
    }
  }
}

static double dot(const double* a, const double* b, size_t n) {
  double sum = 0;

  for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

/* Column k is final: make it a unit vector. */
static void normalise(struct job* job, size_t k) {
  double* column = job->q + k * job->o.rows;
  double norm = sqrt(dot(column, column, job->o.rows));

  job->r[k * job->o.columns + k] = norm;
  for (size_t i = 0; i < job->o.rows; i++) column[i] /= norm;
}

/* Take column k out of my columns to the right of it. */
static void orthogonalise(struct job* job, size_t k) {
  const double* unit = job->q + k * job->o.rows;

  for (size_t j = k + 1; j < job->o.columns; j++) {
    double* column = job->q + j * job->o.rows;

    if (!mine(job, j)) continue;
    double projection = dot(unit, column, job->o.rows);

    job->r[k * job->o.columns + j] = projection;
    for (size_t i = 0; i < job->o.rows; i++) column[i] -= projection * unit[i];
  }
}

static FILE* create(const char* path) {
  FILE* file = fopen(path, "w");

  if (file == NULL) die("%s", path);
  return file;
}

static void report(const struct job* job) {
  size_t cells = job->o.columns * (job->o.rows + job->o.columns);
  char line[128];
  FILE* file;

  snprintf(line, sizeof line, "mgs %zux%zu seed=%llu hash=%016llx", job->o.rows, job->o.columns,
           (unsigned long long)job->o.seed, (unsigned long long)hash_words(0, job->q, cells));
  if (job->o.out != NULL) {
    file = create(job->o.out);
    if (fprintf(file, "%s\n", line) < 0 || fclose(file) != 0) die("%s", job->o.out);
  }
  if (job->o.matrix != NULL) {
    file = create(job->o.matrix);
    if (fwrite(job->q, sizeof(double), cells, file) != cells || fclose(file) != 0) die("%s", job->o.matrix);
  }
  printf("RESULT %s\n", line);
}

static int work(struct job* job) {
  attach(job);
  fill(job);
  barrier(job);
  for (size_t k = 0; k < job->o.columns; k++) {
    if (mine(job, k)) normalise(job, k);
    barrier(job);
    orthogonalise(job, k);
    sleep_ms(job->o.step_ms);
    barrier(job);
    if (job->rank == 0) {
      printf("column %zu of %zu\n", k + 1, job->o.columns);
      fflush(stdout);
    }
  }
  if (job->rank == 0) {
    report(job);
    if (!job->o.leak && shmctl(job->segment, IPC_RMID, NULL) != 0) die("shmctl(IPC_RMID, id %d)", job->segment);
  }
  return 0;
}

/* Without srun: children do the work; the first to fail ends the others. */
static int fork_workers(struct job* job) {
  pid_t children[MOST_PROCESSES];
  int status, failed = 0;

  fflush(stdout);
  for (job->rank = 0; job->rank < job->o.processes; job->rank++) {
    children[job->rank] = fork();
    if (children[job->rank] < 0) die("fork");
    if (children[job->rank] == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      exit(work(job));
    }
  }
  while (wait(&status) > 0) {
    if (status == 0 || failed) continue;
    failed = 1;
    for (uint32_t i = 0; i < job->o.processes; i++) kill(children[i], SIGTERM);
  }
  return failed;
}

int main(int argc, char** argv) {
  struct job job = {.o = parse(argc, argv)};
  /* Not SLURM_NTASKS: that is set in a batch script, too, which is one process. */
  const char *rank = getenv("SLURM_PROCID"), *tasks = getenv("SLURM_STEP_NUM_TASKS");
  const char* nodes = getenv("SLURM_STEP_NUM_NODES");

  if (job.o.processes > 0 || rank == NULL || tasks == NULL) {
    if (job.o.processes == 0) job.o.processes = 4;
    return fork_workers(&job);
  }
  errno = 0;
  if (nodes != NULL && atoi(nodes) > 1) die("the processes share memory: srun must put them on one node (-N1)");
  job.o.processes = (uint32_t)number("SLURM_STEP_NUM_TASKS", tasks, 1, MOST_PROCESSES);
  job.rank = (uint32_t)number("SLURM_PROCID", rank, 0, MOST_PROCESSES - 1);
  return work(&job);
}

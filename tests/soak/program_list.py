# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs.py runs: each row a program that takes some seconds and gives the same answer each time.

All text is given to a shell, in a directory that is a copy of what `prepare` has left there. The answer is the last line with
RESULT on standard output, and all that `answer` prints afterwards.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Program:
    name: str
    package: str       # of Debian, whose version is reported
    needs: str         # succeeds where it is installed
    prepare: str
    run: str
    answer: str = ""
    options: tuple = ()  # of icp run


def has(*names):
    return " && ".join(f"command -v {name} >/dev/null" for name in names)


def python(package):
    return f"/usr/bin/python3 -c 'import {package}'"


def script(name, text):
    return f"cat > {name} <<'END_OF_SCRIPT'\n{text.strip()}\nEND_OF_SCRIPT\n"


WHOLE_FILES = ("--checkpoint-files", "open")

NUMBERS = """perl -e 'srand 7; printf "%010d some more text to sort by %d\\n", rand 1e9, $_ for 1 .. 150000' > numbers\n"""

TREE = """perl -e 'srand 3; for $d (1 .. 12) { mkdir "tree/$d"; for $f (1 .. 25) { open F, ">tree/$d/$f";
print F pack "N*", map { int rand 2**32 } 1 .. 4000 + int rand 8000 } }'\n"""

SQLITE = """
import sqlite3, sys, time
db = sqlite3.connect("bank.db", isolation_level=None)
db.execute("pragma journal_mode=" + sys.argv[1])
db.execute("pragma cache_size=20")
for turn in range(150):
    db.execute("begin")
    for each in range(20):
        one, other = (turn * 7919 + each * 104729) % 5000, (turn * 15485863 + each * 32452843) % 5000
        db.execute("update account set money = money - 1 where id = ?", (one,))
        db.execute("update account set money = money + 1 where id = ?", (other,))
    db.execute("insert into turn values (?, ?)", (turn, "x" * 200))
    db.execute("commit")
    time.sleep(0.008)
print("RESULT", db.execute("select sum(money), sum(money * id) from account").fetchall(), flush=True)
"""
SQLITE_PREPARE = script("bank.py", SQLITE) + """sqlite3 bank.db "create table account (id integer primary key, money integer, pad text);
create table turn (n integer primary key, pad text);
with recursive n(i) as (select 0 union all select i + 1 from n where i < 4999) insert into account select i, 1000, hex(zeroblob(40)) from n"
"""
SQLITE_ANSWER = """sqlite3 bank.db "pragma integrity_check; select sum(money), sum(money * id) from account; select count(*), sum(n) from turn" """


def sqlite(mode, options=()):
    return Program(f"sqlite, journal {mode}{', files kept' if options else ''}", "sqlite3", has("sqlite3"), SQLITE_PREPARE,
                   f"exec /usr/bin/python3 bank.py {mode}", SQLITE_ANSWER, options)


POSTGRES_RUN = """
export PGHOST=$PWD PGUSER=soak PGDATABASE=postgres
postgres -D data -k $PWD -c listen_addresses= -c shared_buffers=16MB -c max_connections=20 > log 2>&1 &
for i in $(seq 200); do pg_isready -q && break; sleep 0.1; done
pgbench -n -c 2 -j 2 -t 600 --random-seed=5 -R 250 > pgbench.out 2>&1; echo "RESULT pgbench $? $(grep processed pgbench.out)"
kill -INT $!; wait $!
"""
POSTGRES_ANSWER = """
export PGHOST=$PWD PGUSER=soak PGDATABASE=postgres
postgres -D data -k $PWD -c listen_addresses= > log2 2>&1 &
for i in $(seq 200); do pg_isready -q && break; sleep 0.1; done
psql -At -c "select count(*), sum(delta) from pgbench_history" -c "select sum(abalance) from pgbench_accounts" \
  -c "select sum(tbalance) from pgbench_tellers" -c "select sum(bbalance) from pgbench_branches"
pg_amcheck -q --heapallindexed 2>&1 | head -5
kill -INT $!; wait $!
"""
POSTGRES_PREPARE = """
initdb -D data -U soak -A trust -N > /dev/null
sed -i 's/^#fsync = on/fsync = off/' data/postgresql.conf
export PGHOST=$PWD PGUSER=soak PGDATABASE=postgres
postgres -D data -k $PWD -c listen_addresses= > log 2>&1 &
for i in $(seq 200); do pg_isready -q && break; sleep 0.1; done
pgbench -i -q -s 1 2> /dev/null; psql -q -c 'create extension amcheck' || true
kill -INT $!; wait $! || true
"""

MARIADB = "mariadbd --no-defaults --datadir=$PWD/data --socket=$PWD/s --skip-networking --pid-file=$PWD/pid " \
          "--innodb-buffer-pool-size=16M --innodb-log-file-size=8M --innodb-flush-log-at-trx-commit=2 --log-error=$PWD/log"
MARIADB_UP = "for i in $(seq 300); do mariadb-admin --no-defaults -S s ping > /dev/null 2>&1 && break; sleep 0.1; done"
MARIADB_RUN = MARIADB + """ > /dev/null 2>&1 &
""" + MARIADB_UP + """
perl transfers.pl | mariadb --no-defaults -S s -u root bank; echo "RESULT client $?"
mariadb-admin --no-defaults -S s -u root shutdown; wait $!
"""
MARIADB_PREPARE = """
mariadb-install-db --no-defaults --datadir=$PWD/data --auth-root-authentication-method=normal --skip-test-db > /dev/null
cat > transfers.pl <<'END'
$| = 1;
for $n (0 .. 1499) {
    my ($a, $b) = ($n * 7919 % 1000, $n * 104729 % 1000);
    print "start transaction; update account set money = money - 1 where id = $a; update account set money = money + 1 where id = $b; insert into turn values ($n); commit;\n";
    select undef, undef, undef, 0.004;
}
END
""" + MARIADB + """ > /dev/null 2>&1 &
""" + MARIADB_UP + """
mariadb --no-defaults -S s -u root -e "create database bank; create table bank.account (id int primary key, money int) engine=innodb; create table bank.turn (n int primary key) engine=innodb; insert into bank.account select seq, 1000 from bank.seq_0_to_999"
mariadb-admin --no-defaults -S s -u root shutdown; wait $! || true
"""
MARIADB_ANSWER = MARIADB + """ > /dev/null 2>&1 &
""" + MARIADB_UP + """
mariadb --no-defaults -N -S s -u root bank -e "check table account, turn; select sum(money), sum(money * id) from account; select count(*), sum(n) from turn"
mariadb-admin --no-defaults -S s -u root shutdown; wait $!
"""

REDIS_CLIENT = """
import socket, time
s = socket.socket(socket.AF_UNIX)
while True:
    try:
        s.connect("s")
        break
    except OSError:
        time.sleep(0.05)
replies = s.makefile("rb")
def call(*words):
    s.sendall(b"*%d\\r\\n" % len(words) + b"".join(b"$%d\\r\\n%s\\r\\n" % (len(w), w) for w in (str(w).encode() for w in words)))
    line = replies.readline()
    if line[:1] == b"$":
        return replies.read(int(line[1:]) + 2)[:-2]
    assert line[:1] in b"+:", line
    return line[1:].strip()
for turn in range(8000):
    call("INCR", f"counter:{turn % 97}")
    call("APPEND", f"text:{turn % 53}", f"{turn},")
    if turn % 1500 == 700:
        call("BGSAVE")
    if turn % 20 == 0:
        time.sleep(0.012)
total = sum(int(call("GET", f"counter:{n}")) for n in range(97))
import hashlib
texts = hashlib.sha256(b"".join(call("GET", f"text:{n}") for n in range(53))).hexdigest()
print("RESULT", total, texts, flush=True)
s.sendall(b"SHUTDOWN SAVE\\r\\n")
"""

MAKEFILE = """
parts := $(shell seq 16)
sum: $(parts:%=part%.o) main.o
	gcc -o $@ $^
%.o: %.c
	gcc -O1 -c -o $@ $<
"""
MAKE_PREPARE = script("Makefile", MAKEFILE) + """perl -e 'for $n (1 .. 16) { open F, ">part$n.c"; print F "#include <math.h>\\n#include <stdio.h>\\n";
for $f (1 .. 12) { print F "long f${n}_$f(long x) { long s = $f; for (long i = 0; i < x; i++) { s += i * $n ^ (s >> 3); if (s % 7 == $f) s -= x; } return s; }\\n" }
print F "long part$n(void) { return 0"; print F " + f${n}_$_(100)" for 1 .. 12; print F "; }\\n" }
open F, ">main.c"; print F "#include <stdio.h>\\nlong part$_(void);\\n" for 1 .. 16; print F "int main(void) { long s = 0;\\n";
print F "s += part$_();\\n" for 1 .. 16; print F "printf(\\"%ld\\\\n\\", s); }\\n"'
"""

LOKY = """
from joblib import Parallel, delayed
import time
def work(n):
    time.sleep(0.01)
    return sum(i * i % (n + 3) for i in range(8000))
if __name__ == "__main__":
    total = 0
    for turn in range(6):
        total += sum(Parallel(n_jobs=3)(delayed(work)(turn * 100 + n) for n in range(100)))
        print(turn, flush=True)
    print("RESULT", total, flush=True)
"""
POOL = """
import multiprocessing, sys, time
def work(n):
    time.sleep(0.01)
    return sum(i * i % (n + 3) for i in range(8000))
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    total, counter, lock = 0, context.Value("l", 0), context.Lock()
    for turn in range(3):
        with context.Pool(3) as pool:
            for value in pool.imap_unordered(work, range(turn * 200, turn * 200 + 200)):
                total += value
                with counter.get_lock(), lock:
                    counter.value += 1
    print("RESULT", total, counter.value, flush=True)
"""
FUTURES = """
import concurrent.futures, hashlib, time
def work(n):
    time.sleep(0.008)
    return hashlib.sha256(b"%d" % n * 20000).hexdigest()[:8]
if __name__ == "__main__":
    total = 0
    with concurrent.futures.ProcessPoolExecutor(2) as processes, concurrent.futures.ThreadPoolExecutor(3) as threads:
        for turn in range(5):
            some = [processes.submit(work, n) for n in range(turn * 100, turn * 100 + 100)]
            some += [threads.submit(work, n) for n in range(turn * 100, turn * 100 + 100)]
            total += sum(int(each.result(), 16) for each in concurrent.futures.as_completed(some))
    print("RESULT", total, flush=True)
"""
TORCH = """
import torch, time
from torch.utils.data import DataLoader, Dataset
torch.set_num_threads(2)
class Numbers(Dataset):
    def __len__(self):
        return 320
    def __getitem__(self, n):
        time.sleep(0.003)
        return torch.sin(torch.arange(256, dtype=torch.float64) * n), torch.tensor(float(n % 17))
if __name__ == "__main__":
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(256, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).double()
    steps = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(6):
        for data, wanted in DataLoader(Numbers(), batch_size=16, num_workers=2):
            loss = ((model(data).squeeze() - wanted.double()) ** 2).mean()
            steps.zero_grad(); loss.backward(); steps.step()
        print(epoch, loss.item(), flush=True)
    print("RESULT", " ".join(f"{p.sum().item():.12g}" for p in model.parameters()), flush=True)
"""

FIRST = [
    Program("sort", "coreutils", has("sort"), NUMBERS,
            "mkdir tmp; for i in 1 2 3 4; do sort -S 1M --parallel=2 -T tmp -k 7,7n -k 1,1 -o sorted$i numbers || exit; sleep 0.2; done",
            "sha256sum sorted*"),
    Program("rsync", "rsync", has("rsync"), "mkdir tree\n" + TREE, "exec rsync -a --bwlimit=2000 tree/ copy/",
            "(cd tree && find . -type f | sort) > names; cd copy && xargs sha256sum < ../names | sha256sum"),
    Program("make", "make", has("make", "gcc"), MAKE_PREPARE, "exec make -j2 sum", "./sum; ls *.o | wc -l; make -q sum && echo made"),
    sqlite("delete"), sqlite("wal"), sqlite("delete", WHOLE_FILES), sqlite("wal", WHOLE_FILES),
    Program("loky", "python3-joblib", python("joblib"), script("p.py", LOKY), "exec /usr/bin/python3 p.py"),
    *(Program(f"multiprocessing, {how}", "python3", has("python3"), script("p.py", POOL), f"exec /usr/bin/python3 p.py {how}")
      for how in ("fork", "spawn", "forkserver")),
    Program("concurrent.futures", "python3", has("python3"), script("p.py", FUTURES), "exec /usr/bin/python3 p.py"),
    Program("torch DataLoader", "python3-torch", python("torch"), script("p.py", TORCH), "exec /usr/bin/python3 p.py"),
]

SERVERS = [
    *(Program(f"PostgreSQL, pgbench{', files kept' if options else ''}", "postgresql-15", has("postgres", "pgbench"), POSTGRES_PREPARE,
              POSTGRES_RUN, POSTGRES_ANSWER, options) for options in ((), WHOLE_FILES)),
    *(Program(f"MariaDB{', files kept' if options else ''}", "mariadb-server", has("mariadbd", "mariadb-install-db"), MARIADB_PREPARE,
              MARIADB_RUN, MARIADB_ANSWER, options) for options in ((), WHOLE_FILES)),
    *(Program(f"redis{', files kept' if options else ''}", "redis-server", has("redis-server"), script("client.py", REDIS_CLIENT),
              """redis-server --port 0 --unixsocket $PWD/s --appendonly yes --daemonize no > log 2>&1 &
/usr/bin/python3 client.py; wait""", "", options) for options in ((), WHOLE_FILES)),
]

GIT = """
set -e
git init -q -b main work; cd work
git config user.name s; git config user.email s@example.com
for i in $(seq 60); do
    echo "line $i" >> text; mkdir -p d$((i % 7)); echo $i > d$((i % 7))/f$i
    git add .; git commit -q -m "commit $i"
    if ((i % 20 == 0)); then git repack -adq; fi
    sleep 0.04
done
echo RESULT $(git rev-list --count HEAD) $(git rev-parse HEAD^{tree})
"""

OPENMP = r"""
#include <math.h>
#include <stdio.h>
#include <time.h>
#include <omp.h>
int main(void) {
  static double a[200000];
  for (int round = 0; round < 250; ++round) {
#pragma omp parallel for schedule(dynamic, 1000) num_threads(4)
    for (int i = 0; i < 200000; ++i) a[i] = sin(a[i] + i * 1e-3) + round;
    struct timespec pause = {0, 8000000};
    nanosleep(&pause, NULL);
  }
  double sum = 0;
  for (int i = 0; i < 200000; ++i) sum += a[i];
  printf("RESULT %.17g\\n", sum);
}
"""
FORTRAN = """
program heat
  real(8) :: a(300,300), b(300,300)
  integer :: i, j, step
  a = 0; a(:,1) = 1; b = a
  open(10, file='progress')
  do step = 1, 4000
    do concurrent (j = 2:299, i = 2:299)
      b(i,j) = 0.25d0 * (a(i-1,j) + a(i+1,j) + a(i,j-1) + a(i,j+1))
    end do
    a = b
    if (mod(step, 50) == 0) write(10, *) step, sum(a)
    if (mod(step, 50) == 0) flush(10)
    if (mod(step, 10) == 0) call execute_wait
  end do
  print '(a,es24.17)', 'RESULT ', sum(a)
contains
  subroutine execute_wait
    interface
      integer(c_int) function usleep(us) bind(c)
        use iso_c_binding
        integer(c_int), value :: us
      end function
    end interface
    if (usleep(5000) /= 0) stop 3
  end subroutine
end program
"""
R_SCRIPT = """
set.seed(11)
best <- 0
for (turn in 1:120) {
  x <- matrix(rnorm(120 * 30), 120)
  y <- x %*% seq(0, 1, length.out = 30) + rnorm(120)
  best <- best + sum(coef(lm(y ~ x))[-1])
  if (turn %% 10 == 0) saveRDS(x, "state.rds")
  Sys.sleep(0.02)
}
cat(sprintf("RESULT %.12f\\n", best))
"""
JAVA = """
import java.util.*;
import java.util.concurrent.*;
public class P {
    public static void main(String[] a) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(3);
        long total = 0;
        for (int turn = 0; turn < 60; turn++) {
            List<Future<Long>> some = new ArrayList<>();
            for (int n = 0; n < 8; n++) {
                final int seed = turn * 8 + n;
                some.add(pool.submit(() -> {
                    Map<Integer, Long> map = new HashMap<>();
                    Random r = new Random(seed);
                    for (int i = 0; i < 20000; i++) map.merge(r.nextInt(500), (long) i, Long::sum);
                    long s = 0;
                    for (Map.Entry<Integer, Long> e : map.entrySet()) s = s * 31 + e.getKey() * e.getValue();
                    Thread.sleep(5);
                    return s;
                }));
            }
            for (Future<Long> f : some) total = total * 17 + f.get();
            Thread.sleep(20);
        }
        pool.shutdown();
        System.out.println("RESULT " + total);
    }
}
"""
GO = """
package main
import ("fmt"; "hash/fnv"; "sync"; "time")
func main() {
	total := uint64(0)
	for turn := 0; turn < 60; turn++ {
		results := make(chan uint64, 64)
		var wait sync.WaitGroup
		for n := 0; n < 64; n++ {
			wait.Add(1)
			go func(n int) {
				defer wait.Done()
				h := fnv.New64a()
				for i := 0; i < 3000; i++ { fmt.Fprintf(h, "%d %d %d", turn, n, i) }
				time.Sleep(5 * time.Millisecond)
				results <- h.Sum64()
			}(n)
		}
		wait.Wait(); close(results)
		for r := range results { total += r }
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Println("RESULT", total)
}
"""
NODE = """
const { Worker, isMainThread, parentPort, workerData } = require("worker_threads");
const crypto = require("crypto");
if (isMainThread) {
  let total = 0n, left = 40;
  const next = (worker) => { if (left-- > 0) worker.postMessage(left); else worker.postMessage(null); };
  let running = 2;
  for (let n = 0; n < 2; n++) {
    const worker = new Worker(__filename);
    worker.on("message", (m) => { total += BigInt(m); setTimeout(() => next(worker), 20); });
    worker.on("exit", () => { if (--running == 0) console.log("RESULT " + total); });
    next(worker);
  }
} else {
  parentPort.on("message", (n) => {
    if (n === null) process.exit(0);
    let h = Buffer.from(String(n));
    for (let i = 0; i < 8000; i++) h = crypto.createHash("sha256").update(h).digest();
    setTimeout(() => parentPort.postMessage(h.readUInt32LE(0)), 40);
  });
}
"""
TMUX = """
tmux -f /dev/null -S $PWD/t new-session -d -x 80 -y 24 'bash work; tmux -S t wait-for -S over'
tmux -S $PWD/t wait-for over
tmux -S $PWD/t kill-server 2>/dev/null
echo RESULT $(cat result)
"""
COUNT = "s=0; for i in $(seq 120); do s=$(( (s * 31 + i) % 1000003 )); echo $s; sleep 0.03; done; echo sum $s > result\n"
SERVE = """
user_config() { printf 'worker_processes 2;\\nerror_log error.log;\\npid nginx.pid;\\nevents { worker_connections 64; }\\nhttp { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path c; server { listen unix:%s/s; root %s; } }\\n' $PWD $PWD > n.conf; }
user_config; echo "page of some text" > page
nginx -p $PWD -c n.conf -e error.log -g 'daemon off;' &
sum=0
for i in $(seq 100); do
    text=$(curl -s --retry 5 --retry-all-errors --unix-socket s http://localhost/page); [[ $text == "page of some text" ]] && sum=$((sum + i))
    sleep 0.02
done
kill $!; wait $!
echo RESULT $sum
"""
MEMCACHED = """
memcached -s $PWD/s -m 16 -U 0 &
/usr/bin/python3 client.py; kill $!; wait $!; true
"""
MEMCACHED_CLIENT = """
import socket, time
s = socket.socket(socket.AF_UNIX)
while True:
    try:
        s.connect("s"); break
    except OSError:
        time.sleep(0.05)
f = s.makefile("rb")
s.sendall(b"set n 0 0 1\\r\\n0\\r\\n"); f.readline()
for i in range(3000):
    s.sendall(b"incr n %d\\r\\n" % i); last = f.readline()
    if i % 20 == 0: time.sleep(0.02)
print("RESULT", last.decode().strip(), flush=True)
"""
INOTIFY = """
mkdir -p watched
inotifywait -q -m -e close_write --format %f watched > seen & watcher=$!
sleep 0.5
for i in $(seq 100); do echo $i > watched/f$i; sleep 0.03; done
sleep 0.3; kill $watcher; wait $watcher
echo RESULT $(sort -u seen | wc -l)
"""
BLAS = """
import numpy, time
a = numpy.random.default_rng(5).standard_normal((160, 160))
q = a
for turn in range(150):
    q, _ = numpy.linalg.qr(a @ q + turn)
    time.sleep(0.015)
print("RESULT %.8f" % numpy.abs(q).sum(), flush=True)
"""

LANGUAGES = [
    Program("OpenMP, C", "gcc", has("gcc"), script("p.c", OPENMP) + "gcc -O2 -fopenmp -o p p.c -lm", "exec ./p"),
    Program("Fortran", "gfortran", has("gfortran"), script("p.f90", FORTRAN) + "gfortran -O2 -o p p.f90", "exec ./p", "tail -1 progress"),
    Program("R", "r-base-core", has("Rscript"), script("p.R", R_SCRIPT), "exec Rscript p.R"),
    Program("Java", "openjdk-17-jdk-headless", has("javac"), script("P.java", JAVA) + "javac P.java", "exec java -Xmx64m P"),
    Program("Go", "golang-go", has("go"), script("p.go", GO) + "HOME=$PWD GOCACHE=$PWD/cache GO111MODULE=off go build -o p p.go; rm -rf cache", "exec ./p"),
    Program("Node", "nodejs", has("node"), script("p.js", NODE), "exec node p.js"),
    Program("numpy, OpenBLAS", "python3-numpy", python("numpy"), script("p.py", BLAS), "exec /usr/bin/python3 p.py"),
    Program("awk", "gawk", has("gawk"), NUMBERS, """gawk '{ c[substr($1, 1, 4)] += $7; if (NR % 2000 == 0) system("sleep 0.03") }
END { for (k in c) s = (s * 7 + c[k]) % 1000003; print "RESULT", s, length(c) }' numbers"""),
    Program("bc", "bc", has("bc"), "", "set -o pipefail; for i in $(seq 60); do echo \"scale=300; a(1)*4 + $i\" | bc -l | tail -1; sleep 0.02; done | sha256sum | sed 's/^/RESULT /'"),
]

SHELL = [
    Program("GNU parallel", "parallel", has("parallel"), NUMBERS,
            "mkdir -p h; export HOME=$PWD/h TMPDIR=$PWD; parallel --will-cite -k -j3 'sleep 0.05; awk \"NR % 60 == {}\" numbers | sha256sum' ::: $(seq 0 59) | sha256sum | sed 's/^/RESULT /'"),
    Program("xargs -P", "findutils", has("xargs"), NUMBERS,
            "seq 0 79 | xargs -P3 -I{} bash -c 'sleep 0.05; awk \"NR % 80 == {}\" numbers | sha256sum > out.{}'; cat $(seq -f out.%g 0 79) | sha256sum | sed 's/^/RESULT /'"),
    Program("tar, xz", "xz-utils", has("tar", "xz"), "mkdir tree\n" + TREE,
            "set -o pipefail; tar --sort=name --mtime=@0 -cf - tree | xz -1 -T2 | tee copy.tar.xz | sha256sum > sum; xz -dc copy.tar.xz | tar -xf - --one-top-level=copy",
            "cat sum; diff -r tree copy/tree && echo same"),
    Program("gzip, pigz", "pigz", has("pigz"), "mkdir tree\n" + TREE,
            "set -o pipefail; for i in 1 2 3; do tar --sort=name --mtime=@0 -cf - tree | pigz -p 3 -6 | gzip -dc | sha256sum; sleep 0.1; done | sha256sum | sed 's/^/RESULT /'"),
    Program("tmux", "tmux", has("tmux"), "cat > work <<'END'\n" + COUNT + "END\n", TMUX),
    Program("script", "bsdutils", has("script"), "cat > work <<'END'\n" + COUNT + "END\n", "script -q -e -c 'bash work' typescript; echo RESULT $(cat result)",
            "grep -c '^[0-9]' typescript"),
    Program("timeout, stdbuf", "coreutils", has("timeout", "stdbuf"), "cat > work <<'END'\n" + COUNT + "END\n",
            "timeout 300 stdbuf -oL bash work | stdbuf -oL tr 0-9 a-j > out; echo RESULT $(cat result) $(sha256sum < out)"),
    Program("sed -i loop", "sed", has("sed"), "seq 400 > text", "for i in $(seq 80); do sed -i \"s/^$i\\$/line $i/\" text; sleep 0.03; done; echo RESULT $(sha256sum < text)"),
    Program("sleep loop", "bash", has("bash"), "cat > work <<'END'\n" + COUNT + "END\n", "bash work > /dev/null; echo RESULT $(cat result)"),
    Program("nginx, curl", "nginx-light", has("nginx", "curl"), "", SERVE),
    Program("memcached", "memcached", has("memcached"), script("client.py", MEMCACHED_CLIENT), MEMCACHED),
    Program("inotifywait", "inotify-tools", has("inotifywait"), "", INOTIFY),
]

GIT_PROGRAMS = [
    Program("git, commits in a loop", "git", has("git"), script("loop", GIT), "exec bash loop",
            "cd work && git fsck --full 2>&1 | grep -v -i dangling; git rev-list --count HEAD; git log --format=%s | sort | uniq -d; git status --short"),
    Program("git, clone and repack", "git", has("git"), """git init -q -b main work; cd work; git config user.name s; git config user.email s@example.com
mkdir tree\n""" + TREE + "git add .; git commit -q -m one; for i in $(seq 30); do echo $i >> tree/1/1; git commit -q -a -m $i; done\n",
            """set -e
for i in 1 2 3; do git clone -q --no-local work copy$i; git -C copy$i -c pack.threads=2 repack -adfq --depth=50 --window=50; sleep 0.1; done""",
            "for i in 1 2 3; do git -C copy$i fsck --full 2>&1; git -C copy$i rev-parse HEAD^{tree}; git -C copy$i status --short; done"),
]

PROGRAMS = FIRST + SERVERS + GIT_PROGRAMS + LANGUAGES + SHELL

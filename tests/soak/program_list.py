# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs.py runs: each row a program that takes some seconds and gives the same answer each time.

All text is given to a shell, in a directory that is a copy of what `prepare` has left there. The answer is the last line with
RESULT on standard output, and all that `answer` prints afterwards.
"""

import dataclasses

from program_texts import (BLAS, FORTRAN, FUTURES, GIT, GO, INOTIFY, JAVA, LOKY, MAKEFILE, MEMCACHED,
                           MEMCACHED_CLIENT, NODE, OPENMP, POOL, REDIS_CLIENT, R_SCRIPT, SERVE, SQLITE, TMUX, TORCH)


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
DIRECTORY = ("--checkpoint-files", "dir:.")

NUMBERS = """perl -e 'srand 7; printf "%010d some more text to sort by %d\\n", rand 1e9, $_ for 1 .. 150000' > numbers\n"""

TREE = """perl -e 'srand 3; for $d (1 .. 12) { mkdir "tree/$d"; for $f (1 .. 25) { open F, ">tree/$d/$f";
print F pack "N*", map { int rand 2**32 } 1 .. 4000 + int rand 8000 } }'\n"""

SQLITE_PREPARE = script("bank.py", SQLITE) + """sqlite3 bank.db "create table account (id integer primary key, money integer, pad text);
create table turn (n integer primary key, pad text);
with recursive n(i) as (select 0 union all select i + 1 from n where i < 4999) insert into account select i, 1000, hex(zeroblob(40)) from n"
"""
SQLITE_ANSWER = """sqlite3 bank.db "pragma integrity_check;
select sum(money), sum(money * id) from account; select count(*), sum(n) from turn" """


def kept(options):
    return {(): "", WHOLE_FILES: ", files kept", DIRECTORY: ", directory kept"}[options]


def sqlite(mode, options=()):
    return Program(f"sqlite, journal {mode}{kept(options)}", "sqlite3", has("sqlite3"), SQLITE_PREPARE,
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
          "--innodb-use-native-aio=0 --innodb-buffer-pool-size=16M --innodb-log-file-size=8M " \
          "--innodb-flush-log-at-trx-commit=2 --log-error=$PWD/log"
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

MAKE_PREPARE = script("Makefile", MAKEFILE) + """perl -e 'for $n (1 .. 16) { open F, ">part$n.c"; print F "#include <math.h>\\n#include <stdio.h>\\n";
for $f (1 .. 12) { print F "long f${n}_$f(long x) { long s = $f; for (long i = 0; i < x; i++) { s += i * $n ^ (s >> 3); if (s % 7 == $f) s -= x; } return s; }\\n" }
print F "long part$n(void) { return 0"; print F " + f${n}_$_(100)" for 1 .. 12; print F "; }\\n" }
open F, ">main.c"; print F "#include <stdio.h>\\nlong part$_(void);\\n" for 1 .. 16; print F "int main(void) { long s = 0;\\n";
print F "s += part$_();\\n" for 1 .. 16; print F "printf(\\"%ld\\\\n\\", s); }\\n"'
"""

FIRST = [
    *(Program(f"sort{kept(options)}", "coreutils", has("sort"), NUMBERS,
            "mkdir tmp; for i in 1 2 3 4; do sort -S 1M --parallel=2 -T tmp -k 7,7n -k 1,1 -o sorted$i numbers || exit; sleep 0.2; done",
            "sha256sum sorted*", options) for options in ((), DIRECTORY)),
    Program("rsync", "rsync", has("rsync"), "mkdir tree\n" + TREE, "exec rsync -a --bwlimit=2000 tree/ copy/",
            "(cd tree && find . -type f | sort) > names; cd copy && xargs sha256sum < ../names | sha256sum"),
    Program("make", "make", has("make", "gcc"), MAKE_PREPARE, "exec make -j2 sum", "./sum; ls *.o | wc -l; make -q sum && echo made"),
    *(sqlite(mode, options) for mode in ("delete", "wal") for options in ((), WHOLE_FILES, DIRECTORY)),
    Program("loky", "python3-joblib", python("joblib"), script("p.py", LOKY), "exec /usr/bin/python3 p.py"),
    *(Program(f"multiprocessing, {how}", "python3", has("python3"), script("p.py", POOL), f"exec /usr/bin/python3 p.py {how}")
      for how in ("fork", "spawn", "forkserver")),
    Program("concurrent.futures", "python3", has("python3"), script("p.py", FUTURES), "exec /usr/bin/python3 p.py"),
    Program("torch DataLoader", "python3-torch", python("torch"), script("p.py", TORCH), "exec /usr/bin/python3 p.py"),
]

SERVERS = [
    *(Program(f"PostgreSQL, pgbench{kept(options)}", "postgresql-15", has("postgres", "pgbench"), POSTGRES_PREPARE,
              POSTGRES_RUN, POSTGRES_ANSWER, options) for options in ((), WHOLE_FILES, DIRECTORY)),
    *(Program(f"MariaDB{kept(options)}", "mariadb-server", has("mariadbd", "mariadb-install-db"), MARIADB_PREPARE,
              MARIADB_RUN, MARIADB_ANSWER, options) for options in ((), WHOLE_FILES, DIRECTORY)),
    Program("MariaDB with io_uring", "mariadb-server", has("mariadbd", "mariadb-install-db"), MARIADB_PREPARE,
            MARIADB_RUN.replace(" --innodb-use-native-aio=0", ""), MARIADB_ANSWER),
    *(Program(f"redis{kept(options)}", "redis-server", has("redis-server"), script("client.py", REDIS_CLIENT),
              """redis-server --port 0 --unixsocket $PWD/s --appendonly yes --daemonize no > log 2>&1 &
/usr/bin/python3 client.py; wait""", "", options) for options in ((), WHOLE_FILES)),
]

COUNT = "s=0; for i in $(seq 120); do s=$(( (s * 31 + i) % 1000003 )); echo $s; sleep 0.03; done; echo sum $s > result\n"

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

GIT_CHECK = """cd work && git fsck --full 2>&1 | grep -v -i dangling; git rev-list --count HEAD; git log --format=%s | sort | uniq -d
git status --short"""
REPOSITORY = """git init -q -b main work; cd work; git config user.name s; git config user.email s@example.com
mkdir tree\n""" + TREE + "git add .; git commit -q -m one; for i in $(seq 30); do echo $i >> tree/1/1; git commit -q -a -m $i; done\n"
CLONE = """set -e
for i in 1 2; do git clone -q --no-local work copy$i; git -C copy$i -c pack.threads=2 repack -adfq; sleep 0.1; done"""
CLONE_CHECK = "for i in 1 2; do git -C copy$i fsck --full 2>&1; git -C copy$i rev-parse HEAD^{tree}; git -C copy$i status --short; done"

GIT_PROGRAMS = [
    Program(f"git, {what}{kept(options)}", "git", has("git"), prepare, run, check, options)
    for what, prepare, run, check in (("commits in a loop", script("loop", GIT), "exec bash loop", GIT_CHECK),
                                      ("clone and repack", REPOSITORY, CLONE, CLONE_CHECK))
    for options in ((), DIRECTORY)
]

PROGRAMS = FIRST + SERVERS + GIT_PROGRAMS + LANGUAGES + SHELL

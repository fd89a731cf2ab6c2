// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * icp_track_test [--list] [CASE...]: runs cases, each in a process of its own. A line each; exit status 1 if one failed.
 * Words are patterns of names;
 * with '-' before it, of cases to leave out.
 */
#include <fnmatch.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/vm/cases/cases.h"

static const struct test_case *const tables[] = { interface_cases, memory_cases,   sharing_cases, kernel_cases,
						  lifetime_cases,  shm_cases, fuzz_cases };

static bool chosen(const char *name, int count, char **words)
{
	bool yes = count == 0;

	for (int i = 0; i < count; i++) {
		if (words[i][0] == '-' && fnmatch(words[i] + 1, name, 0) == 0) return false;
		yes = yes || fnmatch(words[i], name, 0) == 0;
	}
	return yes;
}

/* Output goes through a file: it is shown only when the case does not pass. */
static int run(const struct test_case *one)
{
	FILE *output = tmpfile();
	struct timespec begin, end;
	const char *verdict;
	char line[1024];
	int status;
	pid_t pid;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	pid = fork();
	if (pid == 0) {
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(fileno(output), 1);
		dup2(fileno(output), 2);
		alarm((unsigned)(one->seconds ? one->seconds : 1800)); /* it may be slow here, but not for ever */
		one->run();
		_exit(0);
	}
	while (waitpid(pid, &status, 0) != pid)
		;
	kill(-pid, SIGKILL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		verdict = "PASS";
	else
		verdict = WIFEXITED(status) && WEXITSTATUS(status) == 77 ? "SKIP" : "FAIL";
	printf("%s %s %.1f s\n", verdict, one->name,
	       (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9);
	if (*verdict != 'P') {
		rewind(output);
		while (fgets(line, sizeof line, output)) printf("    %s", line);
		if (WIFSIGNALED(status)) printf("    ended by signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
	}
	fflush(stdout);
	fclose(output);
	return *verdict == 'F';
}

int main(int argc, char **argv)
{
	bool list = argc > 1 && strcmp(argv[1], "--list") == 0;
	int failed = 0, ran = 0;

	for (size_t table = 0; table < sizeof tables / sizeof tables[0]; table++) {
		for (const struct test_case *one = tables[table]; one->name; one++) {
			if (list) {
				puts(one->name);
			} else if (chosen(one->name, argc - 1, argv + 1)) {
				failed += run(one);
				ran++;
			}
		}
	}
	if (!list && !ran) {
		printf("FAIL no such case\n");
		return 1;
	}
	return failed != 0;
}

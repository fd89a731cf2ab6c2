// SPDX-License-Identifier: GPL-2.0-or-later
// Which programs the front end hands over to. Not thread-safe.
#pragma once

enum { kPathBytes = 4096 };

// The path by which this program was executed.
const char* own_path(void);

// Slurm's own scontrol: $ICP_REAL_SCONTROL (and no other, if that is none), else the file that dpkg-divert put beside
// this one (<own path>.distrib), else the next scontrol in PATH. Never a copy of this program, whatever its version:
// two of them would execute each other for ever. Returns 0 if there is none.
int find_real_scontrol(char path[kPathBytes]);

// icp: beside this program, else in PATH, else where it was installed. Returns 0 if there is none.
int find_icp(char path[kPathBytes]);

#!/usr/bin/perl
# SPDX-License-Identifier: GPL-2.0-or-later
# primes: counts and chains the primes up to a limit, segment by segment.
#
#   primes.pl [--limit N] [--segment-ms T]
#
# Each segment of 20000 numbers is sieved on its own; T milliseconds of pause
# follow it.
use strict;
use warnings;
use Getopt::Long;

my ($limit, $pause) = (1_000_000, 0);
GetOptions('limit=i' => \$limit, 'segment-ms=f' => \$pause)
    or die "usage: primes.pl [--limit N] [--segment-ms T]\n";
$| = 1;

my $size = 20_000;
my (@small, %seen_digits);
my ($count, $chain) = (0, 0);
for (my $low = 2; $low <= $limit; $low += $size) {
    my $high = $low + $size - 1;
    $high = $limit if $high > $limit;
    while (!@small || $small[-1] ** 2 <= $high) {    # enough small primes to sieve with
        my $next = @small ? $small[-1] + 1 : 2;
        $next++ while grep { $_ * $_ <= $next && $next % $_ == 0 } @small;
        push @small, $next;
    }
    my @composite;
    for my $prime (@small) {
        my $first = int(($low + $prime - 1) / $prime) * $prime;
        $first = $prime * $prime if $first < $prime * $prime;
        for (my $n = $first; $n <= $high; $n += $prime) { $composite[$n - $low] = 1 }
    }
    for my $n ($low .. $high) {
        next if $composite[$n - $low];
        $count++;
        $chain = ($chain * 31 + $n) % 1_000_000_007;
        $seen_digits{ $n % 1000 } .= chr(65 + $n % 26);
    }
    print "up to $high of $limit\n";
    select undef, undef, undef, $pause / 1000 if $pause > 0;
}
my $text = join ',', map { "$_:" . length($seen_digits{$_}) } sort keys %seen_digits;
$chain = ($chain * 31 + unpack('%32C*', $text)) % 1_000_000_007;
print "RESULT primes limit=$limit count=$count chain=$chain\n";

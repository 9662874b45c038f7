# Hashes, regular expressions, sorting, sprintf and forks.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);

my $state = 17;
sub number { $state = ($state * 1103515245 + 12345) % 2147483648; return $state; }

my %count;
my $text = '';
for (1 .. 120000) {
  my $word = join '', map { chr(97 + number() % 26) } 1 .. 1 + number() % 9;
  $count{$word}++;
  $text .= $word . ' ';
}
print scalar(keys %count), "\n";
print sha256_hex(join ',', map { "$_=$count{$_}" } sort keys %count), "\n";
my $doubles = () = $text =~ /(\w)\1/g;
(my $shorter = $text) =~ s/([aeiou])([^aeiou ]+)/$2$1/g;
print "$doubles ", sha256_hex($shorter), "\n";

my @tree = map { { id => $_, children => [map { { n => $_ } } 1 .. 20] } } 1 .. 4000;
my $total = 0;
$total += $_->{n} for map { @{ $_->{children} } } @tree;
print "$total\n";
@tree = ();

for my $i (1 .. 20) {
  my $child = fork();
  if (!$child) { my @list = map { "x$_" } 1 .. 1000 * $i; exit(@list % 7); }
  waitpid $child, 0;
  print $? >> 8, ' ';
}
print "\n";

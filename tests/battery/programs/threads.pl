# Interpreter threads: each start clones every value of the program.
use strict;
use warnings;
use threads;
use Thread::Queue;

my %shared_by_copy = map { $_ => "value $_" x ($_ % 9) } 1 .. 3000;
my $queue = Thread::Queue->new;
my @threads = map {
  my $id = $_;
  threads->create(sub {
    my $sum = 0;
    while (defined(my $item = $queue->dequeue)) {
      $sum += length($shared_by_copy{$item}) + $item;
    }
    return $sum;
  });
} 1 .. 4;
$queue->enqueue($_) for 1 .. 3000;
$queue->end;
my $total = 0;
$total += $_->join for @threads;
print "$total\n";
for my $round (1 .. 15) {
  print threads->create(sub { return scalar keys %shared_by_copy })->join, ' ';
}
print "\n";

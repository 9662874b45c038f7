// What a user may set from outside: QUARRY_OPTIONS=name:value,name:value…
//
// One table, in options.cc, has every option's name, default, unit and meaning;
// QUARRY_OPTIONS=help:1 prints it.
//
// Thread-safety: LoadOptions() on any number of threads. ApplyOptions() and
//   OpenForStatisticsAtExit() on one thread at a time.
// Errors: what is not understood is reported in one line and ignored; the rest
//   of the text still counts.
// Cost: nothing here allocates, and nothing needs a constructor to have run, so
//   the first call of malloc in a process may call it.
#ifndef QUARRY_ALLOC_OPTIONS_H_
#define QUARRY_ALLOC_OPTIONS_H_

namespace quarry {

// Applies the environment's QUARRY_OPTIONS to `settings`, the first time that
// it is called; afterwards does nothing. Called before the heap is first used.
// A process that runs with more rights than its user (setuid) takes none.
void LoadOptions();

// The same of `environment`, if it has any options, as of what a constructor is told: it may
// come before libc knows the process's own.
void LoadOptionsIfAny(char** environment);

// Where a page of statistics goes when the process ends: the stderr that the
// process started with, though the program may have closed it by then or opened
// something else in its place. -1 when no page is wanted, in a child that the
// process forked, where another process is asked for, and when that stderr can
// no longer be reached.
int OpenForStatisticsAtExit();

// Applies `text`, reporting to `report_descriptor`.
void ApplyOptions(const char* text, int report_descriptor);

// Prints the table, with the defaults.
void PrintOptions(int file_descriptor);

}  // namespace quarry

#endif  // QUARRY_ALLOC_OPTIONS_H_

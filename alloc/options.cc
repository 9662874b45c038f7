#include "alloc/options.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>

#include "arena/errno_saver.h"
#include "arena/limits.h"
#include "arena/report.h"
#include "arena/settings.h"

namespace quarry {
namespace {

enum class Unit {
  kSwitch,
  kByteValue,
  kCount,
  kBytes,
  kMilliseconds,
  kChoice,
};

constexpr char kVariable[] = "QUARRY_OPTIONS";

std::atomic<bool> options_loaded{false};
std::atomic<bool> help_wanted{false};
std::atomic<bool> statistics_at_exit{false};
std::atomic<size_t> statistics_process{0};  // 0 is every process.

// The stderr that the process started with, under a number that the program
// does not use: many programs close their stderr before the very end, to see
// whether all of it was written.
struct FirstStderr {
  pid_t process = 0;
  int descriptor = -1;
  struct stat identity = {};
};
constinit FirstStderr first_stderr;

void KeepStderr() {
  constexpr int kOutOfTheWay = 1000;
  first_stderr.process = getpid();
  first_stderr.descriptor = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, kOutOfTheWay);
  if (first_stderr.descriptor < 0) first_stderr.descriptor = STDERR_FILENO;
  if (fstat(first_stderr.descriptor, &first_stderr.identity) != 0) {
    first_stderr.descriptor = -1;
  }
}

struct Option {
  const char* name;
  Unit unit;
  const char* meaning;
  void (*set)(size_t value);
  size_t (*value_of)(const Settings& settings);
  // The names of a kChoice's values, from 0 on: "none|some|all".
  const char* choices = nullptr;
};

constexpr Option kOptions[] = {
    {"help", Unit::kSwitch, "Print this table to stderr.",
     [](size_t value) {
       help_wanted.store(value != 0, std::memory_order_relaxed);
     },
     [](const Settings&) { return size_t{0}; }},
    {"stats_at_exit", Unit::kSwitch,
     "Print a page of statistics to stderr when the process ends.",
     [](size_t value) {
       const bool wanted = value != 0;
       const bool was_wanted =
           statistics_at_exit.exchange(wanted, std::memory_order_relaxed);
       if (wanted && !was_wanted) KeepStderr();
     },
     [](const Settings&) { return size_t{0}; }},
    {"stats_process", Unit::kCount,
     "Only the process with this id prints that page; 0 is every process.",
     [](size_t value) {
       statistics_process.store(value, std::memory_order_relaxed);
     },
     [](const Settings&) { return size_t{0}; }},
    {"mmap_threshold", Unit::kBytes,
     "Blocks of at least this size get a mapping of their own.",
     [](size_t value) {
       settings.mmap_threshold_bytes.store(value, std::memory_order_relaxed);
       settings.mmap_threshold_adapts.store(false, std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return from.mmap_threshold_bytes.load(std::memory_order_relaxed);
     }},
    {"trim_threshold", Unit::kBytes,
     "Above this much free memory an arena gives some back at once.",
     [](size_t value) {
       settings.trim_threshold_bytes.store(value, std::memory_order_relaxed);
       settings.mmap_threshold_adapts.store(false, std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return from.trim_threshold_bytes.load(std::memory_order_relaxed);
     }},
    {"decay_ms", Unit::kMilliseconds,
     "How long memory stays free before it goes back; 0: none, but for what threads keep.",
     [](size_t value) {
       settings.decay_ms.store(value, std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return from.decay_ms.load(std::memory_order_relaxed);
     }},
    {"maintenance", Unit::kSwitch,
     "A thread gives memory back while the program makes no calls.",
     [](size_t value) {
       settings.maintenance.store(value != 0, std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return size_t{from.maintenance.load(std::memory_order_relaxed)};
     }},
    {"lazy_purge", Unit::kSwitch,
     "What goes back stays resident until the system needs it (MADV_FREE).",
     [](size_t value) {
       settings.lazy_purge.store(value != 0, std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return size_t{from.lazy_purge.load(std::memory_order_relaxed)};
     }},
    {"thp", Unit::kChoice,
     "Huge pages: for no block, as the system is set, or for what will be filled.",
     [](size_t value) {
       settings.huge_pages.store(static_cast<HugePagePolicy>(value),
                                 std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return static_cast<size_t>(
           from.huge_pages.load(std::memory_order_relaxed));
     },
     "never|system|grown"},
    {"soft_limit", Unit::kBytes,
     "Above this much mapped memory, free memory goes back at once; 0: the cgroup's.",
     [](size_t value) {
       SetMemoryLimits(
           value, settings.hard_limit_bytes.load(std::memory_order_relaxed));
     },
     [](const Settings& from) {
       return from.soft_limit_bytes.load(std::memory_order_relaxed);
     }},
    {"hard_limit", Unit::kBytes,
     "What would map more than this much fails; 0 is none.",
     [](size_t value) {
       SetMemoryLimits(
           settings.soft_limit_bytes.load(std::memory_order_relaxed), value);
     },
     [](const Settings& from) {
       return from.hard_limit_bytes.load(std::memory_order_relaxed);
     }},
    {"arenas_max", Unit::kCount,
     "At most this many arenas; 0 is one for each processor, up to 32.",
     [](size_t value) {
       settings.arenas_max.store(value, std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return from.arenas_max.load(std::memory_order_relaxed);
     }},
    {"parked_caches", Unit::kCount,
     "At most so many caches of threads that exited wait for new ones.",
     [](size_t value) {
       settings.parked_caches.store(value, std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return from.parked_caches.load(std::memory_order_relaxed);
     }},
    {"deepbind", Unit::kSwitch,
     "dlopen does what RTLD_DEEPBIND says, so that such libraries have libc's "
     "malloc.",
     [](size_t value) {
       settings.deepbind.store(value != 0, std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return size_t{from.deepbind.load(std::memory_order_relaxed)};
     }},
    {"check_sizes", Unit::kSwitch,
     "A sized free with a wrong size ends the program; 0 frees the block.",
     [](size_t value) {
       settings.check_sizes.store(value != 0, std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return size_t{from.check_sizes.load(std::memory_order_relaxed)};
     }},
    {"perturb", Unit::kByteValue,
     "Fill freed blocks with this byte and fresh ones with its complement; 0 "
     "is off.",
     [](size_t value) {
       settings.perturb_byte.store(static_cast<uint8_t>(value),
                                   std::memory_order_relaxed);
     },
     [](const Settings& from) {
       return size_t{from.perturb_byte.load(std::memory_order_relaxed)};
     }},
};

// What values an option takes.
const char* ValuesOf(const Option& option) {
  switch (option.unit) {
    case Unit::kSwitch:
      return "0 or 1";
    case Unit::kByteValue:
      return "0 to 255";
    case Unit::kCount:
      return "a count";
    case Unit::kBytes:
      return "bytes";
    case Unit::kMilliseconds:
      return "milliseconds";
    case Unit::kChoice:
      return option.choices;
  }
  __builtin_unreachable();
}

size_t LargestOf(Unit unit) {
  switch (unit) {
    case Unit::kSwitch:
      return 1;
    case Unit::kByteValue:
      return 255;
    case Unit::kCount:
    case Unit::kBytes:
      return PTRDIFF_MAX;
    case Unit::kMilliseconds:
      return 24 * 60 * 60 * 1000;
    case Unit::kChoice:
      break;  // Has names in place of numbers.
  }
  __builtin_unreachable();
}

// A part of the text of the options, not terminated.
struct Piece {
  const char* text;
  size_t bytes;

  bool operator==(const char* other) const {
    return strlen(other) == bytes && memcmp(text, other, bytes) == 0;
  }

  // What stands before the first `separator`; all of it where there is none.
  Piece Before(char separator) const {
    const void* end = memchr(text, separator, bytes);
    if (end == nullptr) return *this;
    return {text, static_cast<size_t>(static_cast<const char*>(end) - text)};
  }

  Piece From(size_t start) const { return {text + start, bytes - start}; }
};

// Binary exponents of k, m and g; -1 for any other character.
int SuffixShift(char suffix) {
  switch (suffix) {
    case 'k':
    case 'K':
      return 10;
    case 'm':
    case 'M':
      return 20;
    case 'g':
    case 'G':
      return 30;
    default:
      return -1;
  }
}

bool ParseValue(Piece piece, Unit unit, size_t* value) {
  int shift = 0;
  if (unit == Unit::kBytes && piece.bytes > 1) {
    const int suffix_shift = SuffixShift(piece.text[piece.bytes - 1]);
    if (suffix_shift > 0) {
      shift = suffix_shift;
      --piece.bytes;
    }
  }
  if (piece.bytes == 0) return false;
  size_t number = 0;
  for (size_t i = 0; i < piece.bytes; ++i) {
    const char digit = piece.text[i];
    if (digit < '0' || digit > '9') return false;
    if (__builtin_mul_overflow(number, size_t{10}, &number)) return false;
    if (__builtin_add_overflow(number, size_t(digit - '0'), &number)) {
      return false;
    }
  }
  if (number > LargestOf(unit) >> shift) return false;
  *value = number << shift;
  return true;
}

// Calls visit(name, value) for each choice until that returns true.
template <typename Visit>
void ForEachChoice(const Option& option, Visit visit) {
  Piece rest{option.choices, strlen(option.choices)};
  for (size_t value = 0;; ++value) {
    const Piece name = rest.Before('|');
    if (visit(name, value) || name.bytes == rest.bytes) return;
    rest = rest.From(name.bytes + 1);
  }
}

bool ParseValueOf(const Option& option, Piece piece, size_t* value) {
  if (option.unit != Unit::kChoice) {
    return ParseValue(piece, option.unit, value);
  }
  bool found = false;
  ForEachChoice(option, [&](Piece name, size_t choice) {
    found = name.bytes == piece.bytes &&
            memcmp(name.text, piece.text, name.bytes) == 0;
    if (found) *value = choice;
    return found;
  });
  return found;
}

void AppendValue(const Option& option, size_t value, LineBuffer& line) {
  if (option.unit != Unit::kChoice) {
    line.AppendDecimal(value);
    return;
  }
  ForEachChoice(option, [&](Piece name, size_t choice) {
    if (choice == value) line.AppendText(name.text, name.bytes);
    return choice == value;
  });
}

// A part of the text in quotes: not so much that the rest of the line has no room, and what
// a terminal could take for orders as question marks.
LineBuffer& Quote(LineBuffer& line, Piece piece) {
  constexpr size_t kMostBytes = 100;
  line.AppendText("\"");
  for (size_t i = 0; i < piece.bytes && i < kMostBytes; ++i) {
    const bool is_plain = piece.text[i] >= ' ' && piece.text[i] <= '~';
    line.AppendText(is_plain ? piece.text + i : "?", 1);
  }
  return line.AppendText(piece.bytes > kMostBytes ? "...\"" : "\"");
}

LineBuffer& Begin(LineBuffer& line) {
  return line.AppendText("quarry: ").AppendText(kVariable).AppendText(": ");
}

void ApplyOne(Piece item, int report_descriptor) {
  LineBuffer line;
  const Piece name = item.Before(':');
  if (name.bytes == item.bytes) {
    Quote(Begin(line), item).AppendText(" is not name:value, ignored");
    line.Flush(report_descriptor);
    return;
  }
  const Piece text = item.From(name.bytes + 1);
  for (const Option& option : kOptions) {
    if (!(name == option.name)) continue;
    size_t value;
    if (ParseValueOf(option, text, &value)) return option.set(value);
    Quote(Begin(line), text).AppendText(" is no value for ");
    line.AppendText(option.name);
    line.AppendText(" (").AppendText(ValuesOf(option));
    line.AppendText("), ignored").Flush(report_descriptor);
    return;
  }
  Quote(Begin(line).AppendText("there is no option "), name);
  line.AppendText(" (help:1 lists them), ignored").Flush(report_descriptor);
}

// Blanks up to `column`, and at least one.
void PadTo(LineBuffer& line, size_t column) {
  do {
    line.AppendText(" ");
  } while (line.bytes() < column);
}

// The entry for the options; null where there is none.
const char* TextFrom(char** environment) {
  const size_t length = strlen(kVariable);
  for (char** entry = environment; *entry != nullptr; ++entry) {
    // Before anything else is touched: most programs have no such entry.
    if (**entry != kVariable[0]) continue;
    if (strncmp(*entry, kVariable, length) == 0 && (*entry)[length] == '=') {
      return getauxval(AT_SECURE) == 0 ? *entry + length + 1 : nullptr;
    }
  }
  return nullptr;
}

}  // namespace

void ApplyOptions(const char* text, int report_descriptor) {
  Piece rest{text, strlen(text)};
  while (rest.bytes != 0) {
    const Piece item = rest.Before(',');
    if (item.bytes != 0) ApplyOne(item, report_descriptor);
    rest = rest.From(item.bytes == rest.bytes ? item.bytes : item.bytes + 1);
  }
  const size_t soft_bytes = settings.soft_limit_bytes.load(std::memory_order_relaxed);
  const size_t hard_bytes = settings.hard_limit_bytes.load(std::memory_order_relaxed);
  if (hard_bytes != 0 && soft_bytes > hard_bytes) {
    LineBuffer line;
    Begin(line).AppendText("soft_limit is more than hard_limit, ignored");
    line.Flush(report_descriptor);
    SetMemoryLimits(0, hard_bytes);
  }
  // Once, and after the complaints about the same text.
  if (help_wanted.exchange(false, std::memory_order_relaxed)) {
    PrintOptions(report_descriptor);
  }
}

void PrintOptions(int file_descriptor) {
  static constexpr Settings kDefaults;
  LineBuffer line;
  line.AppendText(
      "quarry: options, as in QUARRY_OPTIONS=name:value,name:value");
  line.Flush(file_descriptor);
  line.AppendText("  name            default    values               meaning");
  line.Flush(file_descriptor);
  for (const Option& option : kOptions) {
    PadTo(line.AppendText("  ").AppendText(option.name), 18);
    AppendValue(option, option.value_of(kDefaults), line);
    PadTo(line, 29);
    PadTo(line.AppendText(ValuesOf(option)), 50);
    line.AppendText(option.meaning).Flush(file_descriptor);
  }
  line.AppendText("  bytes may end in k, m or g: 64k is 65536");
  line.Flush(file_descriptor);
}

int OpenForStatisticsAtExit() {
  // On a page that the loader writes to: one fewer in a program without a heap.
  if (first_stderr.descriptor < 0) return -1;
  if (!statistics_at_exit.load(std::memory_order_relaxed)) return -1;
  const pid_t self = getpid();
  const size_t wanted = statistics_process.load(std::memory_order_relaxed);
  if (self != first_stderr.process) return -1;
  if (wanted != 0 && wanted != static_cast<size_t>(self)) return -1;
  struct stat now;
  if (fstat(first_stderr.descriptor, &now) != 0) return -1;
  const bool is_the_same = now.st_dev == first_stderr.identity.st_dev &&
                           now.st_ino == first_stderr.identity.st_ino;
  return is_the_same ? first_stderr.descriptor : -1;
}

void LoadOptionsIfAny(char** environment) {
  if (environment == nullptr) return;
  const char* const text = TextFrom(environment);
  if (text == nullptr || options_loaded.exchange(true, std::memory_order_relaxed)) return;
  ErrnoSaver saver;
  ApplyOptions(text, STDERR_FILENO);
}

void LoadOptions() {
  // A second thread that comes meanwhile is not made to wait: where there are
  // options, the constructor has loaded them.
  if (options_loaded.load(std::memory_order_relaxed)) return;
  // Before libc knows the environment: the constructor comes later.
  if (environ == nullptr) return;
  LoadOptionsIfAny(environ);
  options_loaded.store(true, std::memory_order_relaxed);
}

}  // namespace quarry

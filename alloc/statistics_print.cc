#include <stddef.h>
#include <unistd.h>

#include <initializer_list>

#include "alloc/statistics.h"

#include "arena/report.h"

namespace quarry {
namespace {

constexpr double kMebibyte = 1 << 20;

// A text on its way to a sink, which gets it in pieces. Unlike the LineBuffer
// of reports it never cuts anything off.
class Page {
 public:
  Page(TextSink sink, void* context) : sink_(sink), context_(context) {}
  ~Page() { Flush(); }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  // `text`, filled up with blanks to `width` characters.
  Page& Text(const char* text, size_t width = 0) {
    size_t length = 0;
    for (; text[length] != '\0'; ++length) Put(text[length]);
    for (; length < width; ++length) Put(' ');
    return *this;
  }

  // `number`, after as many blanks as make it `width` characters.
  Page& Number(size_t number, size_t width = 0) {
    char digits[20];
    size_t length = 0;
    do {
      digits[length++] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number != 0);
    for (size_t i = length; i < width; ++i) Put(' ');
    while (length != 0) Put(digits[--length]);
    return *this;
  }

  // `value`, rounded to one decimal, as Number().
  Page& Decimal(double value, size_t width) {
    const size_t tenths = static_cast<size_t>(value * 10 + 0.5);
    return Number(tenths / 10, width - 2).Text(".").Number(tenths % 10);
  }

 private:
  void Put(char c) {
    if (length_ == sizeof(text_)) Flush();
    text_[length_++] = c;
  }

  void Flush() {
    if (length_ != 0) sink_(context_, text_, length_);
    length_ = 0;
  }

  TextSink sink_;
  void* context_;
  size_t length_ = 0;
  char text_[1024];
};

// The lines that sum to what is mapped, each with its share of it.
class Balance {
 public:
  Balance(Page& page, size_t mapped_bytes)
      : page_(page), mapped_bytes_(mapped_bytes) {}

  Balance& Line(const char* label, size_t bytes) {
    const double share =
        mapped_bytes_ == 0
            ? 0
            : static_cast<double>(bytes) / static_cast<double>(mapped_bytes_);
    page_.Text(label, 30).Number(bytes, 18);
    page_.Decimal(static_cast<double>(bytes) / kMebibyte, 14).Text(" MiB");
    page_.Decimal(share * 100, 8).Text(" %\n");
    return *this;
  }

 private:
  Page& page_;
  const size_t mapped_bytes_;
};

size_t FreeBlocks(const HeapStatistics& s) {
  size_t blocks = 0;
  for (size_t i = 0; i < s.size_classes; ++i) {
    blocks += s.by_class[i].free_blocks;
  }
  return blocks;
}

size_t FreeBytes(const HeapStatistics& s) {
  return s.cached_bytes + s.slab_free_bytes + s.arena_free_bytes +
         s.huge_cached_bytes;
}

// <name type="…" …/>, the shape of most of glibc's elements.
void PrintXmlFigure(Page& page, const char* name, const char* type,
                    size_t bytes) {
  page.Text("<").Text(name).Text(" type=\"").Text(type);
  page.Text("\" size=\"").Number(bytes).Text("\"/>\n");
}

void PrintXmlTotal(Page& page, const char* type, size_t count, size_t bytes) {
  page.Text("<total type=\"").Text(type).Text("\" count=\"").Number(count);
  page.Text("\" size=\"").Number(bytes).Text("\"/>\n");
}

void PrintXmlAttribute(Page& page, const char* name, size_t value) {
  page.Text(" ").Text(name).Text("=\"").Number(value).Text("\"");
}

void WriteToFile(void* context, const char* text, size_t bytes) {
  WriteText(*static_cast<const int*>(context), text, bytes);
}

}  // namespace

void PrintStatistics(const HeapStatistics& s, TextSink sink, void* context) {
  Page page(sink, context);
  page.Text("quarry: memory of process ").Number(static_cast<size_t>(getpid()));
  page.Text("\n").Text("", 30).Text("             bytes\n");
  Balance(page, s.mapped_bytes)
      .Line("  held by the program", s.live_bytes)
      .Line("+ free blocks kept by threads", s.cached_bytes)
      .Line("+ free in slabs", s.slab_free_bytes)
      .Line("+ free page runs", s.arena_free_bytes)
      .Line("+ mappings kept for reuse", s.huge_cached_bytes)
      .Line("+ the allocator's own", s.metadata_bytes)
      .Line("= mapped from the system", s.mapped_bytes)
      .Line("  at the peak", s.peak_mapped_bytes)
      .Line("  dirty in free page runs", s.arena_dirty_bytes);
  page.Text("of what the program holds\n");
  Balance(page, s.mapped_bytes)
      .Line("  small blocks", s.live_small_bytes)
      .Line("  medium blocks", s.live_medium_bytes)
      .Line("  huge blocks", s.live_huge_bytes);

  page.Text("now: ").Number(s.threads).Text(" threads, ");
  page.Number(s.arenas).Text(" arenas, ");
  page.Number(s.segments).Text(" segments, ");
  page.Number(s.slabs).Text(" slabs (").Number(s.slabs_orphaned);
  page.Text(" orphaned), ").Number(s.live_huge_blocks).Text(" huge blocks\n");
  page.Text("system calls: ").Number(s.os_map_calls).Text(" map, ");
  page.Number(s.os_unmap_calls).Text(" unmap, ");
  page.Number(s.os_purge_calls).Text(" purge; ").Number(s.mappings);
  page.Text(" mappings now\n");
  if (s.soft_limit_bytes != 0 || s.hard_limit_bytes != 0) {
    page.Text("limits in bytes: ").Number(s.soft_limit_bytes).Text(" soft, ");
    page.Number(s.hard_limit_bytes).Text(" hard; 0 is none\n");
  }
  page.Text("threads: ").Number(s.refills).Text(" refills, ");
  page.Number(s.flushes).Text(" flushes, ").Number(s.remote_frees);
  page.Text(" remote frees, ").Number(s.drained_blocks).Text(" drained\n");
  page.Text("slabs: ").Number(s.slabs_made).Text(" made, ");
  page.Number(s.slabs_returned).Text(" returned, ").Number(s.adoptions);
  page.Text(" adopted\n");

  page.Text("  block bytes     slabs       live blocks       free blocks\n");
  for (size_t i = 0; i < s.size_classes; ++i) {
    const SizeClassStatistics& c = s.by_class[i];
    if (c.slabs == 0) continue;
    page.Number(c.block_bytes, 13).Number(c.slabs, 10);
    page.Number(c.live_blocks, 18).Number(c.free_blocks, 18).Text("\n");
  }
}

void PrintStatistics(const HeapStatistics& statistics, int file_descriptor) {
  PrintStatistics(statistics, &WriteToFile, &file_descriptor);
}

void PrintStatisticsXml(const HeapStatistics& s, TextSink sink, void* context) {
  Page page(sink, context);
  page.Text("<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>\n");
  for (size_t i = 0; i < s.size_classes; ++i) {
    const SizeClassStatistics& c = s.by_class[i];
    if (c.free_blocks == 0) continue;
    page.Text("<size");
    PrintXmlAttribute(page, "from", c.block_bytes);
    PrintXmlAttribute(page, "to", c.block_bytes);
    PrintXmlAttribute(page, "total", c.block_bytes * c.free_blocks);
    PrintXmlAttribute(page, "count", c.free_blocks);
    page.Text("/>\n");
  }
  page.Text("</sizes>\n");
  // glibc repeats a heap's figures for the process; Quarry has one heap.
  for (const char* end_of_heap : {"</heap>\n", ""}) {
    PrintXmlTotal(page, "fast", 0, 0);
    PrintXmlTotal(page, "rest", FreeBlocks(s), FreeBytes(s));
    if (*end_of_heap == '\0') {
      PrintXmlTotal(page, "mmap", s.live_huge_blocks, s.live_huge_bytes);
    }
    PrintXmlFigure(page, "system", "current", s.mapped_bytes);
    PrintXmlFigure(page, "system", "max", s.peak_mapped_bytes);
    PrintXmlFigure(page, "aspace", "total", s.mapped_bytes);
    PrintXmlFigure(page, "aspace", "mprotect", s.mapped_bytes);
    page.Text(end_of_heap);
  }

  const struct {
    const char* name;
    size_t value;
  } kFigures[] = {
      {"mapped_bytes", s.mapped_bytes},
      {"peak_mapped_bytes", s.peak_mapped_bytes},
      {"live_bytes", s.live_bytes},
      {"cached_bytes", s.cached_bytes},
      {"slab_free_bytes", s.slab_free_bytes},
      {"arena_free_bytes", s.arena_free_bytes},
      {"huge_cached_bytes", s.huge_cached_bytes},
      {"metadata_bytes", s.metadata_bytes},
      {"live_small_bytes", s.live_small_bytes},
      {"live_medium_bytes", s.live_medium_bytes},
      {"live_huge_bytes", s.live_huge_bytes},
      {"live_huge_blocks", s.live_huge_blocks},
      {"threads", s.threads},
      {"arenas", s.arenas},
      {"segments", s.segments},
      {"slabs", s.slabs},
      {"slabs_orphaned", s.slabs_orphaned},
      {"os_map_calls", s.os_map_calls},
      {"os_unmap_calls", s.os_unmap_calls},
      {"os_purge_calls", s.os_purge_calls},
      {"refills", s.refills},
      {"flushes", s.flushes},
      {"remote_frees", s.remote_frees},
      {"drained_blocks", s.drained_blocks},
      {"slabs_made", s.slabs_made},
      {"slabs_returned", s.slabs_returned},
      {"adoptions", s.adoptions},
      {"mappings", s.mappings},
      {"arena_dirty_bytes", s.arena_dirty_bytes},
      {"soft_limit_bytes", s.soft_limit_bytes},
      {"hard_limit_bytes", s.hard_limit_bytes},
  };
  page.Text("<quarry>\n");
  for (const auto& figure : kFigures) {
    page.Text("<figure name=\"").Text(figure.name).Text("\"");
    PrintXmlAttribute(page, "value", figure.value);
    page.Text("/>\n");
  }
  for (size_t i = 0; i < s.size_classes; ++i) {
    const SizeClassStatistics& c = s.by_class[i];
    page.Text("<class");
    PrintXmlAttribute(page, "block_bytes", c.block_bytes);
    PrintXmlAttribute(page, "slabs", c.slabs);
    PrintXmlAttribute(page, "live_blocks", c.live_blocks);
    PrintXmlAttribute(page, "free_blocks", c.free_blocks);
    page.Text("/>\n");
  }
  page.Text("</quarry>\n</malloc>\n");
}

}  // namespace quarry

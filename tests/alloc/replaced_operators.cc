// usage: replaced_operators
// A program with a basic operator new and delete of its own, which has a header before
// each block, and none of the other forms: each of these must come to its own.
#include <stdio.h>
#include <stdlib.h>

#include <new>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kHeaderBytes = 64;
constexpr size_t kMagic = 0x5155415252590001;
bool throws = false;
int news = 0, deletes = 0, aligned_news = 0, aligned_deletes = 0;
int failures = 0;

void* Allocate(size_t bytes, int* count) {
  if (throws) throw std::bad_alloc();
  ++*count;
  auto* const header =
      static_cast<size_t*>(aligned_alloc(kHeaderBytes, kHeaderBytes + bytes));
  *header = kMagic;
  return header + kHeaderBytes / sizeof(size_t);
}

void Deallocate(void* block, int* count) {
  if (block == nullptr) return;
  size_t* const header =
      static_cast<size_t*>(block) - kHeaderBytes / sizeof(size_t);
  if (*header != kMagic) abort();
  *header = 0;
  ++*count;
  free(header);
}

// step() is to call each of the program's own so many times.
template <typename Step>
void Check(const char* what, int times, int aligned_times, Step step) {
  news = deletes = aligned_news = aligned_deletes = 0;
  step();
  if (news == times && deletes == times && aligned_news == aligned_times &&
      aligned_deletes == aligned_times) {
    return;
  }
  printf("FAILED: %s: %d new, %d delete, %d and %d aligned\n", what, news,
         deletes, aligned_news, aligned_deletes);
  ++failures;
}

struct Large {
  char bytes[1000];
};

struct alignas(64) Aligned {
  char bytes[128];
};

// Out of the compiler's sight, or it leaves both out.
template <typename T>
T* Opaque(T* p) {
  asm("" : "+r"(p));
  return p;
}

}  // namespace

// That the sized forms are missing is what this is about.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wsized-deallocation"
#endif

void* operator new(size_t bytes) { return Allocate(bytes, &news); }
void operator delete(void* block) noexcept { Deallocate(block, &deletes); }
void* operator new(size_t bytes, std::align_val_t) {
  return Allocate(bytes, &aligned_news);
}
void operator delete(void* block, std::align_val_t) noexcept {
  Deallocate(block, &aligned_deletes);
}

namespace {

void CheckAllForms() {
  using std::align_val_t;
  using std::nothrow;
  // As a thread that has used malloc: it has its cache.
  free(Opaque(malloc(1000)));
  for (int round = 0; round < 100; ++round) {
    Check("an object", 1, 0, [] { delete Opaque(new Large); });
    Check("an array", 1, 0, [] { delete[] Opaque(new std::string[3]); });
    Check("no object", 0, 0, [] { delete Opaque(static_cast<Large*>(nullptr)); });
    Check("an aligned object", 0, 1, [] { delete Opaque(new Aligned); });
    Check("an aligned array", 0, 1, [] { delete[] Opaque(new Aligned[3]); });
    Check("containers", 101, 0, [] {
      std::vector<std::string> texts;
      texts.reserve(100);
      for (int i = 0; i < 100; ++i) texts.emplace_back(100, 'x');
    });
    for (const size_t bytes : {1, 1000, 100'000, 5'000'000}) {
      Check("sizes", 2, 0, [=] {
        ::operator delete(::operator new(bytes), bytes);
        ::operator delete[](::operator new[](bytes), bytes);
      });
      Check("nothrow", 2, 0, [=] {
        ::operator delete(::operator new(bytes, nothrow), nothrow);
        ::operator delete[](::operator new[](bytes, nothrow), nothrow);
      });
      Check("aligned sizes", 0, 2, [=] {
        constexpr align_val_t k64{64};
        ::operator delete(::operator new(bytes, k64), bytes, k64);
        ::operator delete[](::operator new[](bytes, k64), bytes, k64);
      });
      Check("aligned nothrow", 0, 2, [=] {
        constexpr align_val_t k64{64};
        ::operator delete(::operator new(bytes, k64, nothrow), k64, nothrow);
        ::operator delete[](::operator new[](bytes, k64, nothrow), k64, nothrow);
      });
    }
    Check("nothrow of what throws", 0, 0, [] {
      throws = true;
      constexpr align_val_t k64{64};
      for (void* p : {::operator new(1, nothrow), ::operator new[](1, nothrow),
                      ::operator new(1, k64, nothrow),
                      ::operator new[](1, k64, nothrow)}) {
        if (p != nullptr) ++deletes;
      }
      throws = false;
    });
  }
}

}  // namespace

int main() {
  CheckAllForms();
  std::thread(CheckAllForms).join();
  return failures != 0;
}

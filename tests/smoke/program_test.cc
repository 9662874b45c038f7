// A program that knows nothing of Quarry but the names of malloc: it is linked
// with Quarry, linked statically with it, or run with the library preloaded.
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

// Weak, so that the program links without Quarry, too.
extern "C" __attribute__((weak)) size_t quarry_good_size(size_t bytes);

namespace {

// Allocated before main, freed after it.
std::string* const before_main = new std::string(1000, 'b');
struct FreesAfterMain {
  ~FreesAfterMain() {
    delete before_main;
    free(malloc(100));
  }
} frees_after_main;

TEST(Program, HasQuarryAsItsMalloc) {
  ASSERT_NE(quarry_good_size, nullptr);
  for (size_t bytes = 0; bytes < 100'000; bytes += 1 + bytes / 16) {
    void* block = malloc(bytes);
    EXPECT_EQ(malloc_usable_size(block), quarry_good_size(bytes)) << bytes;
    free(block);
  }
}

TEST(Program, ItsFiguresAreThoseOfQuarry) {
  const size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
  std::vector<void*> blocks(10'000);
  for (void*& block : blocks) block = malloc(1000);
  const size_t after = mallinfo2().uordblks + mallinfo2().hblkhd;
  EXPECT_GE(after - before, blocks.size() * 1000);
  for (void* block : blocks) free(block);
}

TEST(Program, LibcItselfAllocatesFromQuarry) {
  // strdup and getline call malloc inside libc; the program frees.
  char* text = strdup("from inside libc");
  EXPECT_EQ(malloc_usable_size(text), quarry_good_size(strlen(text) + 1));
  free(text);
  char* line = nullptr;
  size_t capacity = 0;
  FILE* file = fopen("/proc/self/status", "r");
  ASSERT_NE(file, nullptr);
  EXPECT_GT(getline(&line, &capacity, file), 0);
  fclose(file);
  EXPECT_GE(malloc_usable_size(line), capacity);
  free(line);
}

TEST(Program, OperatorNewThrowsWhenThereIsNoMemory) {
  volatile size_t impossible = SIZE_MAX / 4;
  EXPECT_THROW(::operator delete(::operator new(impossible)), std::bad_alloc);
  EXPECT_EQ(::operator new(impossible, std::nothrow), nullptr);
  static int handled;
  handled = 0;
  std::set_new_handler([] {
    if (++handled == 3) std::set_new_handler(nullptr);
  });
  EXPECT_THROW(::operator delete(::operator new(impossible)), std::bad_alloc);
  EXPECT_EQ(handled, 3);
}

TEST(Program, ThreadsHandBlocksToEachOther) {
  constexpr int kThreads = 8;
  constexpr int kBlocks = 2000;
  std::vector<std::vector<char*>> made(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&made, t] {
      for (int i = 0; i < kBlocks; ++i) {
        const size_t bytes = 1 + (i * 37 + t) % 3000;
        char* block = static_cast<char*>(malloc(bytes));
        memset(block, t, bytes);
        made[t].push_back(block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  threads.clear();
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&made, t] {
      for (char* block : made[(t + 1) % kThreads]) {
        ASSERT_EQ(*block, (t + 1) % kThreads);
        free(block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Program, AThreadsLastDestructorsMayStillAllocate) {
  static pthread_key_t key;
  ASSERT_EQ(pthread_key_create(&key, [](void* value) {
    free(value);
    free(malloc(300));
  }), 0);
  std::thread([] { pthread_setspecific(key, malloc(50)); }).join();
  pthread_key_delete(key);
}

TEST(Program, AForkedChildAllocates) {
  char* block = strdup("of the parent");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    free(block);
    std::vector<std::string> strings;
    for (int i = 0; i < 1000; ++i) strings.emplace_back(i, 'x');
    _exit(strings[999].size() == 999 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  free(block);
}

TEST(Program, HandsOutManyMegabytes) {
  std::vector<char*> blocks;
  for (size_t bytes = 16; bytes <= size_t{64} << 20; bytes *= 2) {
    char* block = static_cast<char*>(calloc(1, bytes));
    ASSERT_NE(block, nullptr) << bytes;
    EXPECT_EQ(block[bytes - 1], 0);
    block[0] = block[bytes - 1] = 1;
    blocks.push_back(block);
  }
  for (char* block : blocks) free(block);
}

}  // namespace

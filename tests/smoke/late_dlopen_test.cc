// The library opened by a program that has run on libc's malloc for a while,
// has threads, and has spent thread-local storage of its own.
#include <dlfcn.h>
#include <stdlib.h>

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace {

using Malloc = void* (*)(size_t);
using Free = void (*)(void*);

thread_local char spent_already[4096];

TEST(LateDlopen, TheLibraryServesThreadsThatWereThereBefore) {
  spent_already[0] = 1;
  constexpr int kThreads = 4;
  std::atomic<Malloc> quarry_malloc = nullptr;
  std::atomic<Free> quarry_free = nullptr;
  std::atomic<int> served = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      free(malloc(100));
      while (quarry_free.load() == nullptr) std::this_thread::yield();
      std::vector<void*> blocks;
      for (size_t bytes = 0; bytes < 5000; bytes += 7) {
        blocks.push_back(quarry_malloc.load()(bytes));
        if (blocks.back() == nullptr) return;
      }
      for (void* block : blocks) quarry_free.load()(block);
      ++served;
    });
  }

  const char* path = getenv("QUARRY_LIBRARY");
  ASSERT_NE(path, nullptr);
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  EXPECT_NE(library, nullptr) << dlerror();
  if (library == nullptr) abort();
  quarry_malloc = reinterpret_cast<Malloc>(dlsym(library, "quarry_malloc"));
  quarry_free = reinterpret_cast<Free>(dlsym(library, "quarry_free"));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(served, kThreads);

  // What it handed out outlives the dlclose.
  char* block = static_cast<char*>(quarry_malloc.load()(1000));
  dlclose(library);
  block[999] = 1;
  quarry_free.load()(block);
}

TEST(LateDlopen, AThreadThatStartsAfterTheDlcloseEnds) {
  std::thread([] { free(malloc(10)); }).join();
}

}  // namespace

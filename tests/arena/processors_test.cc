#include "arena/processors.h"

#include <sched.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <thread>

#include "gtest/gtest.h"
#include "tests/arena/in_child.h"

namespace quarry {
namespace {

cpu_set_t Allowed() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) abort();
  return set;
}

// To the first that the thread may use.
void BindToOne() {
  const cpu_set_t all = Allowed();
  int first = 0;
  while (!CPU_ISSET(first, &all)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  if (sched_setaffinity(0, sizeof(one), &one) != 0) abort();
}

TEST(Processors, AreThoseThatTheProcessHadAtFirst) {
  EXPECT_EQ(InChild([] {
              const cpu_set_t all = Allowed();
              errno = 77;
              RememberProcessors();
              BindToOne();
              if (Processors() != static_cast<size_t>(CPU_COUNT(&all))) abort();
              if (errno != 77) abort();
            }),
            0);
}

TEST(Processors, AreCountedWhenAskedFor) {
  EXPECT_EQ(InChild([] {
              BindToOne();
              if (Processors() != 1) abort();
            }),
            0);
}

TEST(Processors, ABoundThreadMayRunWhereTheMainThreadMay) {
  EXPECT_EQ(InChild([] {
              const cpu_set_t all = Allowed();
              std::thread([&] {
                BindToOne();
                errno = 77;
                RunOnAllProcessors();
                if (errno != 77) abort();
                const cpu_set_t now = Allowed();
                if (!CPU_EQUAL(&now, &all)) abort();
              }).join();
            }),
            0);
}

TEST(Processors, WhereTheMainThreadIsBoundToOneOnAllThatThereWere) {
  EXPECT_EQ(InChild([] {
              const cpu_set_t all = Allowed();
              RememberProcessors();
              BindToOne();
              RunOnAllProcessors();
              const cpu_set_t now = Allowed();
              if (!CPU_EQUAL(&now, &all)) abort();
            }),
            0);
}

TEST(Processors, NothingChangesWhereNobodyHasAsked) {
  EXPECT_EQ(InChild([] {
              BindToOne();
              RunOnAllProcessors();
              const cpu_set_t now = Allowed();
              if (CPU_COUNT(&now) != 1) abort();
            }),
            0);
}

}  // namespace
}  // namespace quarry

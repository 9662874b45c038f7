#ifndef QUARRY_TESTS_SMOKE_FORK_HANDLERS_LIBRARY_H_
#define QUARRY_TESTS_SMOKE_FORK_HANDLERS_LIBRARY_H_

/* Starts the thread that the library's fork handlers wait for. To be called once, before
 * the first fork(). Returns 0, or an error. */
int StartOther(void);

/* Waits until that thread has allocated. */
void WaitForOther(void);

#endif /* QUARRY_TESTS_SMOKE_FORK_HANDLERS_LIBRARY_H_ */

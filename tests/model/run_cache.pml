/*
 * A cache of page runs between its owner and the maintenance thread.
 *
 * Models tcache/run_cache.{h,cc}: Enter, Leave, Take (as which PopAbove and
 * PopIdle count), Put (and TryPut), Fill, Remove, StealIdle with FenceAllThreads.
 *
 * Each of the two threads has a store buffer, as on x86: its plain stores reach
 * memory later, in order; its own loads see them at once. membarrier() empties
 * the caller's buffer at its call, the owner's at any moment of it.
 *
 * Abstracted: one slot, two runs, and no eviction (a full slot refuses); puts_,
 * so that StealIdle tries at any time; orders weaker than x86's.
 *
 * Properties: the two are never at the slot together; a run is in one place,
 * the owner's hands, the slot or the arena; the slot's bytes and cached_bytes_
 * agree with its run whenever one of the two has it to itself.
 *
 * Mutants, each of which must fail:
 *   NO_MEMBARRIER     the thief has a fence of its own alone
 *   LOOK_BEFORE_BUSY  Enter asks whether it is closed, then says it is busy
 *   OPEN_TOO_EARLY    the thief opens the slots, then empties them
 *   TAKE_UNASKED      Take trusts what it saw before it entered
 *   LEAVE_TOO_EARLY   the owner leaves, then fills
 */

/* Variables in memory. */
#define BUSY 0
#define SHUT 1 /* is_closed_ */
#define RUN 2
#define BYTES 3
#define CACHED 4
#define VARIABLES 5

#define OWNER 0
#define THIEF 1

/* Where runs are. */
#define IN_ARENA 0
#define IN_HANDS 1
#define IN_SLOT 2

#define MOST_STORES 9

byte memory[VARIABLES];
/* The buffers: the oldest store first. */
chan owner_stores = [MOST_STORES] of { byte, byte };
chan thief_stores = [MOST_STORES] of { byte, byte };
/* What the owner's, and the thief's, loads see. */
typedef View { byte value[VARIABLES]; byte waiting[VARIABLES] }
View view[2];

byte place[3]; /* of runs 1 and 2 */
bit inside[2];

#define SEEN(who, variable) \
  (view[who].waiting[variable] -> view[who].value[variable] : memory[variable])

inline Store(who, variable, what) {
  atomic {
    view[who].value[variable] = what;
    view[who].waiting[variable]++;
    if
    :: who == OWNER -> owner_stores!variable, what
    :: else -> thief_stores!variable, what
    fi
  }
}

/* The oldest store reaches memory. */
inline Commit(who) {
  if
  :: who == OWNER -> owner_stores?variable, what
  :: else -> thief_stores?variable, what
  fi;
  memory[variable] = what;
  view[who].waiting[variable]--;
  if
  :: view[who].waiting[variable] == 0 -> view[who].value[variable] = 0
  :: else
  fi;
  variable = 0;
  what = 0
}

proctype Buffer(bit who) {
  byte variable, what;
end:
  do
  :: atomic { who == OWNER && nempty(owner_stores) -> Commit(OWNER) }
  :: atomic { who == THIEF && nempty(thief_stores) -> Commit(THIEF) }
  od
}

#define AGREE(who) \
  ((SEEN(who, RUN) != 0) == (SEEN(who, BYTES) != 0) && \
   (SEEN(who, RUN) != 0) == (SEEN(who, CACHED) != 0))

inline GoIn(who) {
  atomic { inside[who] = 1; assert(!inside[1 - who] && AGREE(who)) }
}
inline GoOut(who) {
  atomic { assert(AGREE(who)); inside[who] = 0 }
}

/* `entered` is its result. */
inline Enter() {
#ifdef LOOK_BEFORE_BUSY
  entered = !SEEN(OWNER, SHUT);
  Store(OWNER, BUSY, 1);
#else
  Store(OWNER, BUSY, 1);
  entered = !SEEN(OWNER, SHUT);
#endif
  if
  :: entered -> GoIn(OWNER)
  :: else -> Leave()
  fi
}

inline Leave() { Store(OWNER, BUSY, 0) }

inline Remove(who) {
  Store(who, CACHED, 0);
  Store(who, BYTES, 0);
  Store(who, RUN, 0)
}

inline Fill(run_) {
  atomic { assert(place[run_] == IN_HANDS); place[run_] = IN_SLOT };
  Store(OWNER, RUN, run_);
  Store(OWNER, BYTES, run_);
  Store(OWNER, CACHED, run_)
}

proctype Owner() {
  byte r, before;
  bit entered;
end_at_rest:
  do
  /* From the arena. */
  :: atomic { place[1] == IN_ARENA -> place[1] = IN_HANDS }
  :: atomic { place[2] == IN_ARENA -> place[2] = IN_HANDS }
  /* Take. */
  :: atomic { SEEN(OWNER, BYTES) != 0 -> before = SEEN(OWNER, BYTES) };
     Enter();
     if
     :: entered ->
        r = SEEN(OWNER, RUN);
#ifdef TAKE_UNASKED
        r = before;
#endif
        if
        :: r != 0 ->
           Remove(OWNER)
        :: else
        fi;
        GoOut(OWNER);
        Leave();
        if
        :: r != 0 ->
           atomic { assert(place[r] == IN_SLOT); place[r] = IN_HANDS; r = 0 }
        :: else
        fi
     :: else
     fi;
     atomic { before = 0; entered = 0 }
  /* Put. */
  :: atomic {
       if
       :: place[1] == IN_HANDS -> r = 1
       :: place[2] == IN_HANDS -> r = 2
       fi
     };
     Enter();
     if
     :: entered ->
#ifdef LEAVE_TOO_EARLY
        GoOut(OWNER);
        Leave();
#endif
        if
        :: SEEN(OWNER, BYTES) == 0 -> Fill(r)
        :: else
        fi;
#ifndef LEAVE_TOO_EARLY
        GoOut(OWNER);
        Leave()
#endif
     :: else
     fi;
     /* What found no room goes to the arena. */
     atomic {
       if
       :: place[r] == IN_HANDS -> place[r] = IN_ARENA
       :: else
       fi;
       r = 0;
       entered = 0
     }
  od
}

proctype Thief() {
  byte r;
  bit sees_owner;
  byte variable, what;
end_at_rest:
  do
  :: SEEN(THIEF, CACHED) != 0 ->
     Store(THIEF, SHUT, 1);
     /* FenceAllThreads. */
     atomic { empty(thief_stores) };
#ifndef NO_MEMBARRIER
     atomic {
       do
       :: nempty(owner_stores) -> Commit(OWNER)
       :: empty(owner_stores) -> break
       od
     };
#endif
     sees_owner = SEEN(THIEF, BUSY);
     if
     :: sees_owner -> Store(THIEF, SHUT, 0)
     :: else ->
        GoIn(THIEF);
        r = SEEN(THIEF, RUN);
#ifdef OPEN_TOO_EARLY
        GoOut(THIEF);
        Store(THIEF, SHUT, 0);
#endif
        if
        :: r != 0 -> Remove(THIEF)
        :: else
        fi;
#ifndef OPEN_TOO_EARLY
        GoOut(THIEF);
        Store(THIEF, SHUT, 0);
#endif
        if
        :: r != 0 ->
           atomic { assert(place[r] == IN_SLOT); place[r] = IN_ARENA; r = 0 }
        :: else
        fi
     fi;
     sees_owner = 0
  od
}

init {
  atomic {
    run Buffer(OWNER);
    run Buffer(THIEF);
    run Owner();
    run Thief()
  }
}

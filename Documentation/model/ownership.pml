/* The hand-over's ownership word, as HandoverSource and HandoverDestination drive it.
 *
 * Either process may die at any point (once each), the source may lose patience at any point after its offer, and the
 * destination may refuse at any point before its claim. Checked:
 *   never two runners:  not (source runs and destination runs), at every moment;
 *   never none:         when everything has come to rest, a living process that may run the guest runs it.
 * Run: spin -a ownership.pml && cc -DSAFETY -o pan pan.c && ./pan   (no error, no unreached end)
 */
mtype = { SOURCE, OFFERED, DESTINATION };

mtype word = SOURCE;
bool sourceAlive = true, destinationAlive = true;
bool sourceRuns = true, destinationRuns = false;
bool sourceDone = false, destinationDone = false;   /* the process reached its end by itself */
bool stateSent = false, offerSent = false, refused = false, runningSent = false;
bool guestDied = false;                             /* with the process that owned it: allowed */

#define neverTwo !(sourceRuns && destinationRuns)

inline sourceDies() { atomic {
    sourceAlive = false;
    if
    :: word == SOURCE -> guestDied = true
    :: else
    fi;
    sourceRuns = false;
} }

inline destinationDies() { atomic {
    destinationAlive = false;
    if
    :: word == DESTINATION -> guestDied = true
    :: else
    fi;
    destinationRuns = false;
} }

proctype Source() {
    /* greeting, describing, preparing: the guest runs here */
    if
    :: sourceDies(); goto dead
    :: refused || !destinationAlive -> goto stayed
    :: skip
    fi;
    sourceRuns = false;                             /* pause, save */
    if
    :: sourceDies(); goto dead
    :: goto resume                                  /* pause or save failed, cancelled */
    :: skip
    fi;
    stateSent = true;
    if
    :: sourceDies(); goto dead
    :: refused || !destinationAlive -> goto resume
    :: skip
    fi;
    atomic { assert(word == SOURCE); word = OFFERED };
    if
    :: sourceDies(); goto dead
    :: skip
    fi;
    offerSent = true;
    if
    :: sourceDies(); goto dead
    :: runningSent -> goto moved
    :: refused || !destinationAlive -> goto takeBack
    :: goto takeBack                                /* out of patience */
    fi;
takeBack:
    if
    :: sourceDies(); goto dead
    :: atomic { word == OFFERED -> word = SOURCE }; goto resume
    :: atomic { word == DESTINATION -> skip }; goto moved
    fi;
resume:
    if
    :: sourceDies(); goto dead
    :: skip
    fi;
    atomic { sourceRuns = true; assert(neverTwo) };
stayed:
    goto finished;
moved:
    if
    :: sourceDies(); goto dead
    :: skip
    fi;
    assert(!sourceRuns);
finished:
    sourceDone = true;
dead:
    skip
}

proctype Destination() {
    /* greeting, preparing */
    if
    :: destinationDies(); goto dead
    :: refused = true; goto notOurs
    :: skip
    fi;
    if
    :: destinationDies(); goto dead
    :: stateSent -> skip
    :: !stateSent && (!sourceAlive || sourceDone) -> goto notOurs
    fi;
    if                                              /* loading */
    :: destinationDies(); goto dead
    :: refused = true; goto notOurs
    :: skip
    fi;
    if                                              /* the word, the message, or the end of the source */
    :: destinationDies(); goto dead
    :: word == OFFERED -> skip
    :: offerSent -> skip
    :: !sourceAlive || sourceDone -> skip
    fi;
    if
    :: destinationDies(); goto dead
    :: atomic { word == OFFERED -> word = DESTINATION }
    :: atomic { word != OFFERED -> skip }; goto notOurs
    fi;
    if
    :: destinationDies(); goto dead
    :: skip
    fi;
    atomic { destinationRuns = true; assert(neverTwo) };
    if
    :: destinationDies(); goto dead
    :: skip
    fi;
    runningSent = true;
notOurs:
    destinationDone = true;
dead:
    skip
}

/* When both have come to rest: the guest runs in exactly one place, or it died with its owner, or nobody is left. */
proctype Judge() {
    (!sourceAlive || sourceDone) && (!destinationAlive || destinationDone);
    assert(sourceRuns || destinationRuns || guestDied || (!sourceAlive && !destinationAlive)
           || (!sourceAlive && refused) );
    assert(neverTwo);
}

init { atomic { run Source(); run Destination(); run Judge() } }

package main

import (
	"errors"
	"sort"
	"sync"
	"time"

	"google.golang.org/grpc/status"
)

// tally counts calls between two reports.
type tally struct {
	mutex sync.Mutex
	// When each server last answered. Reports keep it, since an answer that has ceased is of interest
	// later.
	last  map[string]int64
	waits []int
	since counts
}

type counts struct {
	calls    int
	failed   int
	byServer map[string]int
	byKind   map[string]int
	errors   map[string]int
}

func newTally() *tally {
	return &tally{last: map[string]int64{}, since: newCounts()}
}

func newCounts() counts {
	return counts{byServer: map[string]int{}, byKind: map[string]int{}, errors: map[string]int{}}
}

// succeeded records the answer of a server.
func (t *tally) succeeded(kind, server string) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if _, seen := t.last[server]; !seen {
		emit("seen", fields{"server": server})
	}
	t.since.calls++
	t.since.byKind[kind]++
	t.since.byServer[server]++
	t.last[server] = time.Now().UnixNano()
	t.answerWaits()
}

// failed records a call that failed.
func (t *tally) failed(err error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.since.calls++
	t.since.failed++
	t.since.errors[described(err)]++
}

// wait answers once this many different servers have answered since the last report.
func (t *tally) wait(servers int) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.waits = append(t.waits, servers)
	t.answerWaits()
}

func (t *tally) answerWaits() {
	var open []int
	for _, servers := range t.waits {
		if len(t.since.byServer) < servers {
			open = append(open, servers)
			continue
		}
		names := make([]string, 0, len(t.since.byServer))
		for name := range t.since.byServer {
			names = append(names, name)
		}
		sort.Strings(names)
		emit("waited", fields{"servers": names})
	}
	t.waits = open
}

// report emits the counts and begins again.
func (t *tally) report() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	emit("report", fields{
		"calls": t.since.calls, "failed": t.since.failed, "by_server": t.since.byServer,
		"by_kind": t.since.byKind, "errors": t.since.errors, "last_at_unix_ns": t.last,
	})
	t.since = newCounts()
}

// described returns the code and message of a call's error. Answers that are wrong have no code.
func described(err error) string {
	var coded interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &coded) {
		return "wrong answer: " + err.Error()
	}
	return coded.GRPCStatus().Code().String() + ": " + coded.GRPCStatus().Message()
}
